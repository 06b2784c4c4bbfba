"""The best step of a run so far, by a metric of its choice. This module knows names and numbers, no files."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Config


@dataclass
class Best:
    """The best value of ``metric`` so far and its step; None before the first. ``is_max``: larger is better."""

    metric: str
    is_max: bool = True
    value: float | None = None
    step: int | None = None
    is_seen: bool = False

    @classmethod
    def of(cls, config: Config) -> Best | None:
        """The one that a config asks for, or None."""
        return None if config.best_metric is None else cls(config.best_metric, config.best_is == "max")

    def take(self, value: float | None, step: int) -> bool:
        """Whether a step's value is better than all before, which is then noted. NaN and infinity never are."""
        if value is None:
            return False
        self.is_seen = True
        sign = 1 if self.is_max else -1
        if not math.isfinite(value) or (self.value is not None and sign * value <= sign * self.value):
            return False
        self.value, self.step = float(value), step
        return True

    def check(self, metrics: Mapping[str, float]) -> None:
        """Raise ValueError where the metric should be among those of a step and is not.

        An evaluation has its names checked before the run, and is not part of every step.
        """
        if self.is_seen or self.metric in metrics or self.metric.startswith("eval/"):
            return
        near = difflib.get_close_matches(self.metric, metrics, n=3, cutoff=0.4) or sorted(metrics)
        raise ValueError(f"Config.best_metric={self.metric!r} is no metric of a step; near: {', '.join(near)}")

    def warn_if_unseen(self) -> None:
        """Warn at the end of a training in which no step, and no probe, gave the metric."""
        if not self.is_seen:
            text = f"Config.best_metric={self.metric!r} was a metric of no step: there is no best checkpoint"
            warnings.warn(text, RuntimeWarning, stacklevel=3)

    def metrics(self) -> dict[str, float]:
        """``best/value`` and ``best/step`` so far, for the log; nothing before the first."""
        if self.value is None or self.step is None:
            return {}
        return {"best/value": self.value, "best/step": float(self.step)}

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"value": self.value, "step": self.step}

    def restore(self, numbers: Mapping[str, Any] | None) -> None:
        """Go on from the numbers of a checkpoint. None: it was saved without them, and the comparison begins anew."""
        if numbers is not None:
            self.value, self.step = numbers["value"], numbers["step"]
            self.is_seen = self.value is not None
