"""A tracker as ``train(on_step=…)`` takes it: it hands each step's numbers on, and closes its run when it is over.

The modules ``to_wandb``, ``to_trackio`` and ``to_mlflow`` beside this one make trackers; none of them imports its
package before it is called. This module knows no package.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from types import TracebackType

from ..distributed.processes import Processes
from ..types import Step


class Tracker:
    """Hands metrics on. Close it, or use it as a context manager; else it is closed when Python ends.

    ``log``: takes a step's metrics and its number. ``close``: takes whether the run failed.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], close: Callable[[bool], None]) -> None:
        self._log = log
        self._close: Callable[[bool], None] | None = close
        atexit.register(self.close)

    def __call__(self, step: Step) -> None:
        if self._close is None:
            raise ValueError("this tracker is closed: make another one, which goes on with the same run")
        self._log(step.metrics, step.number)

    def close(self, *, is_failed: bool = False) -> None:
        """End the tracker's run; a second call does nothing."""
        atexit.unregister(self.close)
        close, self._close = self._close, None
        if close is not None:
            close(is_failed)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(is_failed=kind is not None)


def is_silent() -> bool:
    """Whether this process is one of several and not the first, which alone calls ``on_step``: it opens no run."""
    return not Processes.current().is_first


def silent() -> Tracker:
    """A tracker that tracks nothing."""
    return Tracker(lambda metrics, step: None, lambda is_failed: None)
