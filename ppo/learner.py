"""The gradient of one minibatch, added up microbatch by microbatch; how it is split does not change it.

Each process takes its own rows, and what they add up is the gradient of the whole minibatch. This module knows how a
gradient comes about, nothing of what is done with it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .buffer import microbatches, rows, trim_rollout
from .lm.tied_embedding import lean_tied_gradient
from .losses import ppo_loss
from .metrics import mean_gaps
from .retain import RetainLoss, count_predictions
from .run.limits import retry_smaller
from .types import Rollout

if TYPE_CHECKING:
    from .trace.recorder import Recorder
    from .trainer import Trainer

RetainBatch = tuple[Tensor, Tensor]
"""Ids int64 [R, L] and mask bool [R, L] of the text to keep that goes with a minibatch."""

ROW_GAP = "policy/row_log_ratio"
"""Among a minibatch's statistics: mean size of log(new / old) in the row where it is largest, nats per token."""


def draw_retain(trainer: Trainer) -> RetainBatch | None:
    """The text to keep that goes with the next minibatch, if the run has any."""
    return None if trainer.retain_loss is None else trainer.retain_loss.draw(trainer.device)


def accumulate_gradients(
    trainer: Trainer, minibatch: Rollout, retain: RetainBatch | None, recorder: Recorder | None = None
) -> dict[str, float]:
    """Leave the gradient of a minibatch in the parameters, and return its statistics, those of all processes.

    ``recorder`` looks on and changes nothing.

    Where memory runs out, the minibatch starts again with smaller microbatches; not so where the weights are split,
    for then the other processes are waiting in the middle of this one.
    """

    def shrink() -> bool:
        trainer.optimizer.zero_grad()
        if recorder is not None:
            recorder.restart()
        is_alone = trainer.processes.count == 1 or trainer.config.sharding == "none"
        return is_alone and trainer.limits.halve_microbatch(len(minibatch) // trainer.processes.count)

    with lean_tied_gradient(trainer.actor):
        totals, row_gap = retry_smaller(lambda: _own_gradients(trainer, minibatch, retain, recorder), shrink)
    trainer.processes.sum_gradients(list(trainer.actor.trained_parameters().values()))
    return trainer.processes.sum_numbers(totals) | {ROW_GAP: trainer.processes.max(row_gap)}


def _own_gradients(
    trainer: Trainer, minibatch: Rollout, retain: RetainBatch | None, recorder: Recorder | None
) -> tuple[dict[str, float], float]:
    """The statistics of this process's rows, and the :data:`ROW_GAP` among them."""
    num_tokens, kl_coef = int(minibatch.generation.mask.sum()), trainer.kl_controller.coef
    totals: dict[str, float] = {}
    row_gap = 0.0
    for indices, weight in _own_microbatches(trainer, minibatch.generation.attention_mask):
        part = trim_rollout(rows(minibatch, indices))
        new = trainer.evaluate(part.generation)
        loss, statistics = ppo_loss(new, part, trainer.config, kl_coef=kl_coef, num_tokens=num_tokens)
        if recorder is not None:
            recorder.watch(part, new, num_tokens=num_tokens)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        for name, value in statistics.items():
            totals[name] = totals.get(name, 0.0) + weight * float(value)
        gaps = mean_gaps(new.logprobs.detach(), part.old_logprobs, part.generation.mask)
        row_gap = max(row_gap, float(gaps.max()))
    if trainer.retain_loss is not None and retain is not None:
        totals["retain/loss"] = _own_retain_gradients(trainer, trainer.retain_loss, *retain)
    return totals, row_gap


def _own_retain_gradients(trainer: Trainer, retain_loss: RetainLoss, ids: Tensor, mask: Tensor) -> float:
    num_tokens = count_predictions(mask)
    total = 0.0
    for indices, weight in _own_microbatches(trainer, mask):
        loss_of = partial(retain_loss, trainer.actor.backbone, ids[indices], mask[indices], num_tokens=num_tokens)
        with trainer.precision():
            loss = trainer.actor.run(loss_of)
        (weight * trainer.config.retain_coef * loss).backward()  # type: ignore[no-untyped-call]
        total += weight * float(loss.detach())
    return total


def _own_microbatches(trainer: Trainer, attention_mask: Tensor) -> list[tuple[Tensor, float]]:
    """This process's rows of a batch in microbatches, each with the weight 1.

    Split weights are gathered by all processes at once, so there they need equally many: the first row fills up, with
    the weight 0.
    """
    own, limits = trainer.processes.deal(attention_mask), trainer.limits
    split = partial(microbatches, size=limits.microbatch, tokens=limits.microbatch_tokens)
    parts = [(own[indices], 1.0) for indices in split(attention_mask[own])] if len(own) else []
    missing = int(trainer.processes.max(len(parts))) - len(parts) if trainer.config.sharding == "fsdp" else 0
    return parts + [(torch.zeros(1, dtype=torch.long), 0.0)] * missing
