"""What must hold in every step, asked while it runs: a number that cannot be right ends the run and names its rows.

    rollout          masks without holes, as many real tokens as the samples have, every number finite, padding 0
    sampler          where the training forward was asked as well, the sampler's log-probs are its own, row by row
    first_minibatch  before the first update policy and old policy are one: log-probs apart mean a wrong distribution
    not_finite       a loss or gradient of NaN or infinity: the update is left out, and after a few the run ends

Each leaves a dump that :func:`ppo.replay` takes up again. The checks cost a few reductions over [B, T] a step;
``Config(checks="off")`` leaves all but the last out. Of several processes all come to the same verdict.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..buffer import microbatches, rows, trim_rollout
from ..learner import RetainBatch
from ..metrics import mean_gaps
from ..types import Rollout, Sample
from .dump import write_dump

if TYPE_CHECKING:
    from ..trainer import Trainer

_SHOWN = 3  # rows that a message names
_MOST_LOGPROB = 1e-3  # above 0 by rounding only
# Nats per token of a row, whether all is float32. Measured on SmolLM2-135M: 1e-5; in bfloat16 0.12 over 8 tokens, 0.06
# over 40.
_GAPS = {True: 0.005, False: 0.3}


class CheckError(RuntimeError):
    """Something that must hold did not; the message names the check, the rows and the dump."""


def check_rollout(trainer: Trainer, rollout: Rollout) -> None:
    """Raise :class:`CheckError` for a rollout that no update should see."""
    if trainer.config.checks == "off":
        return
    for problem, is_bad in rollout_problems(rollout).items():
        if bool(is_bad.any()):
            _fail(trainer, "rollout", problem, rollout, is_bad.float(), retain=None)
    gaps, limit = sampler_gaps(rollout), gap_limit(trainer)
    if bool((gaps > limit).any()):
        text = f"the sampler's log-probs are not those of the training forward (nats per token, most {limit:g})"
        _fail(trainer, "sampler", text, rollout, gaps * (gaps > limit), retain=None)


def sampler_gaps(rollout: Rollout) -> Tensor:
    """Nats per token between the log-probs of the sampler and those taken for the old policy's, a row, [B]."""
    return mean_gaps(rollout.generation.logprobs, rollout.old_logprobs, rollout.generation.mask)


def rollout_problems(rollout: Rollout) -> dict[str, Tensor]:
    """What could be wrong, and on which rows it is, bool [B]."""
    generation, mask, prompt = rollout.generation, rollout.generation.mask, rollout.generation.prompt_mask
    lengths = torch.tensor([len(sample.ids) for sample in rollout.samples], device=mask.device)
    problems = {
        "the response mask has a hole": (mask[:, 1:] & ~mask[:, :-1]).any(dim=1),
        "the prompt mask has a hole": (prompt[:, :-1] & ~prompt[:, 1:]).any(dim=1),
        "there is no real token": (generation.lengths < 1) | ~prompt.any(dim=1),
        "the mask counts other tokens than the sample has": generation.lengths != lengths,
        "old_logprobs is above 0": (rollout.old_logprobs > _MOST_LOGPROB).any(dim=1),
        "scores is not finite": ~rollout.scores.to(mask.device).isfinite(),
    }
    for field in fields(rollout):
        value = getattr(rollout, field.name)
        if isinstance(value, Tensor) and value.dim() == 2:
            problems[f"{field.name} is not finite"] = ~value.isfinite().all(dim=1)
            problems[f"{field.name} is not 0 on padding"] = ((value != 0) & ~mask).any(dim=1)
    return problems


def check_first_minibatch(trainer: Trainer, minibatch: Rollout, retain: RetainBatch | None, gap: float) -> None:
    """Raise :class:`CheckError` where the log-probs of a fresh rollout are not those of the policy that sampled it.

    ``gap``: mean size of log(new / old) in the worst row, nats per token, before the first update of a step. A NaN is
    left to the check of the gradient.
    """
    limit = gap_limit(trainer)
    if trainer.config.checks == "on" and gap > limit:
        ratio = "the first minibatch has a ratio other than 1"
        text = f"{ratio}: its log-probs are {gap:.3g} nats per token off (most {limit:g})"
        gaps = row_gaps(trainer, minibatch)
        _fail(trainer, "first_minibatch", text, minibatch, gaps * (gaps > limit), retain)


def gap_limit(trainer: Trainer) -> float:
    """Nats per token of a row that the sampler's and the training forward's log-probs may lie apart."""
    if trainer.config.max_logprob_gap_nats is not None:
        return trainer.config.max_logprob_gap_nats
    dtype = next(trainer.model.parameters()).dtype
    return _GAPS[trainer.config.autocast == "off" and dtype in (torch.float32, torch.float64)]


def check_finite(statistics: Mapping[str, float]) -> None:
    """Raise FloatingPointError that names the statistics of a minibatch that are NaN or infinite."""
    if wrong := [f"{name} is {value}" for name, value in statistics.items() if not math.isfinite(value)]:
        raise FloatingPointError(", ".join(wrong))


def leave_out(trainer: Trainer, minibatch: Rollout, retain: RetainBatch | None, error: FloatingPointError) -> None:
    """Forget a gradient that is not finite; the first of several running leaves a dump, the last ends the run."""
    trainer.optimizer.zero_grad()
    trainer.num_not_finite += 1
    limit = trainer.config.stop_after_skipped_updates
    if trainer.num_not_finite > 1 and trainer.num_not_finite < limit:
        return
    text = f"{error}; {trainer.num_not_finite} of {limit} such updates running"
    described = _described(trainer, "not_finite", text, minibatch, ~_row_is_finite(trainer, minibatch), retain)
    if trainer.num_not_finite >= limit:
        raise FloatingPointError(described) from error
    if trainer.processes.is_first:
        warnings.warn(f"{described}; this update is left out", RuntimeWarning, stacklevel=3)


@torch.no_grad()
def row_gaps(trainer: Trainer, rollout: Rollout) -> Tensor:
    """Mean size of log(new / old) of each row, nats per token, float32 [B]."""
    gaps, limits = torch.zeros(len(rollout), device=rollout.generation.mask.device), trainer.limits
    attention_mask = rollout.generation.attention_mask
    for indices in microbatches(attention_mask, size=limits.microbatch, tokens=limits.microbatch_tokens):
        part = trim_rollout(rows(rollout, indices))
        logprobs = trainer.evaluate(part.generation).logprobs
        gaps[indices] = mean_gaps(logprobs, part.old_logprobs, part.generation.mask).to(gaps.dtype)
    return gaps


def _row_is_finite(trainer: Trainer, rollout: Rollout) -> Tensor:
    """Whether everything that a row brings into the loss is finite, the policy's own log-probs included, bool [B]."""
    is_finite = row_gaps(trainer, rollout).isfinite()
    for name in ("advantages", "returns", "old_values", "old_logprobs"):
        is_finite &= getattr(rollout, name).isfinite().all(dim=1)
    return is_finite


def _fail(
    trainer: Trainer, check: str, text: str, rollout: Rollout, badness: Tensor, retain: RetainBatch | None
) -> None:
    raise CheckError(_described(trainer, check, text, rollout, badness, retain))


def _described(
    trainer: Trainer, check: str, text: str, rollout: Rollout, badness: Tensor, retain: RetainBatch | None
) -> str:
    """The message: step, what is wrong, the worst rows, and where the dump lies."""
    worst = torch.argsort(badness.float().nan_to_num(nan=math.inf), descending=True, stable=True).tolist()
    chosen = [row for row in worst if bool(badness[row] != 0)][:_SHOWN]
    count = int((badness != 0).sum())
    named = "; ".join(_row_text(row, rollout.samples[row], float(badness[row])) for row in chosen)
    where = f"in {count} of {len(rollout)} rows, such as {named}" if chosen else "no single row stands out"
    message = f"step {trainer.step}: {text}: {where}"
    return f"{message}; {write_dump(trainer, check, message, rollout, retain)}"


def _row_text(row: int, sample: Sample, badness: float) -> str:
    prompt = f"{sample.prompt:.40}" if sample.prompt else f"{sample.prompt_ids[-8:]}"
    return f"row {row} ({prompt!r}{'' if badness == 1 else f', {badness:.3g}'})"
