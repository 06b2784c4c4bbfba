"""What one minibatch does to the weights: its gradient, the checks, a step of the optimiser; or why there was none.

This module knows the order within one such step, nothing of how many an update takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .checks.checks import check_finite, check_first_minibatch, leave_out
from .learner import ROW_GAP, RetainBatch, accumulate_gradients, draw_retain
from .types import Rollout

if TYPE_CHECKING:
    from .trace.recorder import Recorder
    from .trainer import Trainer


@dataclass(frozen=True)
class Lesson:
    """``statistics`` of a minibatch; ``skipped``: the metric that counts it where the weights did not move, else ""."""

    statistics: dict[str, float]
    skipped: str = ""


def learn_from(trainer: Trainer, minibatch: Rollout, recorder: Recorder | None, *, is_fresh: bool) -> Lesson:
    """Move the weights by one step, unless the mean ratio is out of bounds or something is not finite.

    ``is_fresh``: the policy is still the one that the minibatch was sampled from, so the ratio must be 1. Raises
    CheckError where it is not, FloatingPointError after too many gradients running that are not finite.
    """
    retain = draw_retain(trainer)
    statistics = accumulate_gradients(trainer, minibatch, retain, recorder)
    row_gap = statistics.pop(ROW_GAP)
    if is_fresh:
        check_first_minibatch(trainer, minibatch, retain, row_gap)
    lesson = _step(trainer, minibatch, retain, statistics)
    if recorder is not None:
        found = lesson.statistics
        recorder.close(
            statistics, grad_norm=found.get("update/grad_norm"), learning_rate=found.get("update/learning_rate")
        )
    return lesson


def _step(trainer: Trainer, minibatch: Rollout, retain: RetainBatch | None, statistics: dict[str, float]) -> Lesson:
    if exceeds(statistics["policy/ratio"], trainer.config.max_mean_ratio):
        trainer.optimizer.zero_grad()
        return Lesson(statistics, skipped="update/skipped_minibatches")
    try:
        check_finite(statistics)
        norm, rate = trainer.optimizer.step(trainer.step)
    except FloatingPointError as error:
        leave_out(trainer, minibatch, retain, error)
        return Lesson(statistics, skipped="update/skipped_not_finite")
    trainer.num_not_finite = 0
    return Lesson(statistics | {"update/grad_norm": norm, "update/learning_rate": rate})


def exceeds(value: float, limit: float | None) -> bool:
    """Whether a number is above a limit, if there is one."""
    return limit is not None and value > limit
