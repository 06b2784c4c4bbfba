"""Metrics to MLflow: ``with to_mlflow("experiment") as tracker: trainer.train(100, on_step=tracker)``."""

import time
from collections.abc import Mapping

from ..config import Config
from .tracker import Tracker, is_silent, silent


def to_mlflow(
    experiment: str, *, config: Config | None = None, name: str | None = None, run_id: str | None = None,
    tracking_uri: str | None = None,
) -> Tracker:  # fmt: skip
    """A tracker that opens a run of MLflow. ``run_id``: goes on with that run, whose parameters stay.

    ``tracking_uri``: a server or a database; None: as MLflow is set up. Steps that a resumed run repeats are there
    twice. Raises ImportError without the package.
    """
    if is_silent():
        return silent()
    try:
        from mlflow import MlflowClient, entities
    except ImportError as error:
        raise ImportError("to_mlflow needs the package mlflow: pip install mlflow") from error
    client = MlflowClient(tracking_uri=tracking_uri)
    if run_id is None:
        found = client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else client.create_experiment(experiment)
        run_id = client.create_run(home, run_name=name).info.run_id
        settings = config.to_dict() if config is not None else {}
        client.log_batch(run_id, params=[entities.Param(key, str(value)) for key, value in settings.items()])

    def log(metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[entities.Metric(key, float(x), now, step) for key, x in metrics.items()])

    return Tracker(log, lambda failed: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"))
