"""Metrics to trackio: ``with to_trackio("project") as tracker: trainer.train(100, on_step=tracker)``."""

from __future__ import annotations

from ..config import Config
from .tracker import Tracker, is_silent, silent


def to_trackio(
    project: str, *, config: Config | None = None, name: str | None = None, space_id: str | None = None
) -> Tracker:
    """A tracker that opens a run of trackio. ``name``: goes on with the run of this name, or begins it.

    ``space_id``: a Hugging Face Space; None: files on this machine, where the environment variable ``TRACKIO_DIR``
    says. Steps that a resumed run repeats are there twice. Raises ImportError without the package.
    """
    if is_silent():
        return silent()
    try:
        import trackio
    except ImportError as error:
        raise ImportError("to_trackio needs the package trackio: pip install trackio") from error
    settings = config.to_dict() if config is not None else None
    resume = "allow" if name is not None else "never"
    run = trackio.init(project=project, name=name, space_id=space_id, config=settings, resume=resume, embed=False)
    return Tracker(lambda metrics, step: run.log(dict(metrics), step=step), lambda failed: run.finish())
