"""Metrics to Weights & Biases: ``with to_wandb("project") as tracker: trainer.train(100, on_step=tracker)``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..config import Config
from .tracker import Tracker, is_silent, silent


def to_wandb(
    project: str,
    *,
    config: Config | None = None,
    name: str | None = None,
    run_id: str | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
    folder: str | Path | None = None,
) -> Tracker:
    """A tracker that opens a run of wandb. ``run_id``: goes on with that run, or begins it under this id.

    ``mode``, ``folder``: as ``mode`` and ``dir`` of ``wandb.init``. wandb drops a step that goes back, as a resumed run
    may. So numbers are sent without wandb's own counter, and ``step`` is the axis of every curve. Raises ImportError
    without the package.
    """
    if is_silent():
        return silent()
    try:
        import wandb
    except ImportError as error:
        raise ImportError("to_wandb needs the package wandb: pip install wandb") from error
    settings = config.to_dict() if config is not None else None
    run = wandb.init(
        project=project, config=settings, name=name, id=run_id, resume="allow" if run_id is not None else None,
        mode=mode, dir=folder,
    )  # fmt: skip
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return Tracker(lambda metrics, step: run.log({**metrics, "step": step}), lambda failed: run.finish(int(failed)))
