"""What must hold in every step: a number that cannot be right ends the run, and the message names its rows.

    rollout          masks have no holes, samples have as many tokens as their masks, numbers are finite, padding is 0
    sampler          if the training forward was asked as well, it gave the sampler's log-probs, row by row; not where
                     importance weights correct the difference, nor where another engine drew (``is_given``)
    first_minibatch  before the first update the policy is the old policy, so their log-probs are equal up to rounding;
                     a larger gap means that the responses were sampled from another distribution
    not_finite       losses and gradients are finite; an update that breaks this is skipped, and several such updates
                     in a row end the run

Each violation leaves a dump that :func:`ppo.replay` reads. The checks cost a few reductions over [B, T] a step.
``Config(checks="off")`` turns all of them off but the last. All processes come to the same verdict.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from ..config import Config
from ..metrics import mean_gaps
from ..policy import Policy
from ..retain import RetainBatch
from ..types import Rollout, Sample
from .dump import Dumps

_SHOWN = 3  # rows that a message names
_MOST_LOGPROB = 1e-3  # rounding alone lifts a log-prob above 0, by less than this
# The largest gap of a row, nats per token, by whether all is computed in float32 or float64. Measured on SmolLM2-135M:
# 1e-5 in float32; in bfloat16 0.12 over 8 tokens and 0.06 over 40.
_LARGEST_GAPS = {True: 0.005, False: 0.3}


class CheckError(RuntimeError):
    """Something that must hold did not; the message names the check, the rows and the dump."""


class Checks:
    """Checks what must hold in every step.

    ``dumps``: writes what :func:`ppo.replay` reads after a violation. ``own_sampler``: the name of a sampler of
    somebody else's, or "".
    """

    def __init__(self, policy: Policy, config: Config, dumps: Dumps, *, own_sampler: str = "") -> None:
        self._own_sampler = own_sampler
        self._policy = policy
        self._config = config
        self._dumps = dumps

    @property
    def most_gap_nats(self) -> float:
        """The largest gap that passes between log-probs that should be equal: the mean of a row, nats per token."""
        if self._config.max_logprob_gap_nats is not None:
            return self._config.max_logprob_gap_nats
        return _LARGEST_GAPS[self._config.autocast == "off" and self._policy.dtype in (torch.float32, torch.float64)]

    def rollout(self, rollout: Rollout, *, step: int, is_given: bool = False) -> None:
        """Raise :class:`CheckError` for a rollout that no update should see. All processes must call this.

        ``is_given``: another engine drew the responses, so its log-probs need not be those of the training forward.
        """
        if self._config.checks == "off":
            return
        problems = rollout_problems(rollout)
        is_found = torch.stack(list(problems.values())).any(dim=1).tolist()  # the host waits once for all of them
        for (problem, is_bad), is_there in zip(problems.items(), is_found, strict=True):
            if is_there:
                raise CheckError(self._dump_and_describe("rollout", problem, rollout, is_bad.float(), None, step))
        if is_given or rollout.importance_weights is not None:
            return
        gaps, most = sampler_gaps(rollout), self.most_gap_nats
        is_apart = ~(gaps <= most)  # NaN is apart, too
        if bool(is_apart.any()):
            text = f"the sampler's log-probs are not those of the training forward (nats per token, limit {most:g})"
            text += self._remedy()
            raise CheckError(self._dump_and_describe("sampler", text, rollout, gaps * is_apart, None, step))

    def first_minibatch(self, minibatch: Rollout, retain: RetainBatch | None, gap: float, *, step: int) -> None:
        """Raise :class:`CheckError` if the policy gives other log-probs than the old ones before the first update.

        ``gap``: mean size of log(new / old) in the worst row, nats per token. NaN passes: the check of the gradient
        catches it.
        """
        most = self.most_gap_nats
        if self._config.checks == "on" and gap > most:
            ratio = "the first minibatch has a ratio other than 1"
            text = f"{ratio}: its log-probs are {gap:.3g} nats per token off (limit {most:g})"
            if self._policy.is_sampler_exact:  # the old log-probs are the sampler's
                text += self._remedy()
            gaps = self._policy.gaps(minibatch)
            raise CheckError(
                self._dump_and_describe("first_minibatch", text, minibatch, gaps * (gaps > most), retain, step)
            )

    def _remedy(self) -> str:
        """What to do about log-probs that a sampler of somebody else's gave."""
        if not self._own_sampler:
            return ""
        return (
            f"; sampler={self._own_sampler} gave them: take those of policy.measure(generation), or correct the "
            "difference with Config(importance='token', old_logprobs='recompute')"
        )

    def finite(self, statistics: Mapping[str, float]) -> None:
        """Raise FloatingPointError that names the NaN or infinite statistics of a minibatch, if there are any."""
        if wrong := [f"{name} is {value}" for name, value in statistics.items() if not math.isfinite(value)]:
            raise FloatingPointError(", ".join(wrong))

    def skipped_update(
        self, minibatch: Rollout, retain: RetainBatch | None, error: FloatingPointError, *, in_a_row: int, step: int
    ) -> None:
        """Report a skipped update, the ``in_a_row``-th in a row.

        The first one leaves a dump and a RuntimeWarning. The ``config.stop_after_skipped_updates``-th one leaves a dump
        and ends the run with FloatingPointError. Those between are silent.
        """
        limit = self._config.stop_after_skipped_updates
        if in_a_row > 1 and in_a_row < limit:
            return
        text = f"{error}; {in_a_row} of {limit} such updates in a row"
        message = self._dump_and_describe("not_finite", text, minibatch, ~self._is_finite(minibatch), retain, step)
        if in_a_row >= limit:
            raise FloatingPointError(message) from error
        if self._policy.processes.is_first:
            warnings.warn(f"{message}; this update is skipped", RuntimeWarning, stacklevel=3)

    def _is_finite(self, rollout: Rollout) -> Tensor:
        """Whether all that enters the loss of a row is finite, the policy's own log-probs included: bool [B]."""
        is_finite = self._policy.gaps(rollout).isfinite()
        for name in ("advantages", "returns", "old_values", "old_logprobs"):
            is_finite &= getattr(rollout, name).isfinite().all(dim=1)
        return is_finite

    def _dump_and_describe(
        self, check: str, text: str, rollout: Rollout, badness: Tensor, retain: RetainBatch | None, step: int
    ) -> str:
        """Write a dump and return the message: the step, what is wrong, the worst rows, and where the dump is.

        ``badness`` [B]: 0 for rows that are right; the larger, the worse.
        """
        worst = torch.argsort(badness.float().nan_to_num(nan=math.inf), descending=True, stable=True).tolist()
        chosen = [row for row in worst if bool(badness[row] != 0)][:_SHOWN]
        count = int((badness != 0).sum())
        named = "; ".join(_row_text(row, rollout.samples[row], float(badness[row])) for row in chosen)
        where = f"in {count} of {len(rollout)} rows, such as {named}" if chosen else "no single row stands out"
        message = f"step {step}: {text}: {where}"
        return f"{message}; {self._dumps.write(check, message, rollout, retain, step=step)}"


def sampler_gaps(rollout: Rollout) -> Tensor:
    """Mean gap of each row between the sampler's log-probs and the old ones, nats per token [B]."""
    return mean_gaps(rollout.generation.logprobs, rollout.old_logprobs, rollout.generation.action_mask)


def rollout_problems(rollout: Rollout) -> dict[str, Tensor]:
    """Every problem that is looked for, with the rows that have it: bool [B]."""
    generation, mask, prompt = rollout.generation, rollout.generation.mask, rollout.generation.prompt_mask
    lengths = torch.tensor([len(sample.ids) for sample in rollout.samples], device=mask.device)
    problems = {
        "the response mask has a hole": (mask[:, 1:] & ~mask[:, :-1]).any(dim=1),
        "the prompt mask has a hole": (prompt[:, :-1] & ~prompt[:, 1:]).any(dim=1),
        "there is no real token": (generation.lengths < 1) | ~prompt.any(dim=1),
        "there is no action": ~generation.action_mask.any(dim=1),
        "an action is no real token": (generation.action_mask & ~mask).any(dim=1),
        "the mask counts other tokens than the sample has": generation.lengths != lengths,
        "old_logprobs is above 0": (rollout.old_logprobs > _MOST_LOGPROB).any(dim=1),
        "scores is not finite": ~rollout.scores.to(mask.device).isfinite(),
    }
    if rollout.importance_weights is not None:
        drawn = generation.logprobs.masked_fill(~generation.action_mask, 0.0)
        is_wrong = ~drawn.isfinite() | (drawn > _MOST_LOGPROB)
        problems["the sampler's log-probs are above 0 or not finite"] = is_wrong.any(dim=1)
        is_uncertain = (rollout.old_logprobs < -_MOST_LOGPROB).any(dim=1)
        problems["the sampler gave no log-probs, which importance weights need"] = is_uncertain & ~drawn.any()
    for field in fields(rollout):
        value = getattr(rollout, field.name)
        if isinstance(value, Tensor) and value.dim() == 2:
            problems[f"{field.name} is not finite"] = ~value.isfinite().all(dim=1)
            problems[f"{field.name} is not 0 on padding"] = ((value != 0) & ~mask).any(dim=1)
            if generation.action_mask is not mask:
                is_written = mask & ~generation.action_mask
                problems[f"{field.name} is not 0 where an environment wrote"] = ((value != 0) & is_written).any(dim=1)
    return problems


def _row_text(row: int, sample: Sample, badness: float) -> str:
    prompt = f"{sample.prompt:.40}" if sample.prompt else f"{sample.prompt_ids[-8:]}"
    return f"row {row} ({prompt!r}{'' if badness == 1 else f', {badness:.3g}'})"
