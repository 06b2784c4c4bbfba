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

import torch
from torch import Tensor

from ..config import Config
from ..metrics import mean_gaps
from ..policy import Policy
from ..retain import RetainBatch
from ..types import Rollout, Sample
from .dump import Dumps

_SHOWN = 3  # rows that a message names
_MOST_LOGPROB = 1e-3  # above 0 by rounding only
# Nats per token of a row, whether all is float32. Measured on SmolLM2-135M: 1e-5; in bfloat16 0.12 over 8 tokens, 0.06
# over 40.
_GAPS = {True: 0.005, False: 0.3}


class CheckError(RuntimeError):
    """Something that must hold did not; the message names the check, the rows and the dump."""


class Checks:
    """Asks what must hold in every step. ``dumps``: where a violation is left for :func:`ppo.replay`."""

    def __init__(self, policy: Policy, config: Config, dumps: Dumps) -> None:
        self._policy = policy
        self._config = config
        self._dumps = dumps

    @property
    def most_gap_nats(self) -> float:
        """How far the sampler's and the training forward's log-probs may lie apart: nats per token of a row."""
        if self._config.max_logprob_gap_nats is not None:
            return self._config.max_logprob_gap_nats
        return _GAPS[self._config.autocast == "off" and self._policy.dtype in (torch.float32, torch.float64)]

    def rollout(self, rollout: Rollout, *, step: int) -> None:
        """Raise :class:`CheckError` for a rollout that no update should see."""
        if self._config.checks == "off":
            return
        for problem, is_bad in rollout_problems(rollout).items():
            if bool(is_bad.any()):
                raise CheckError(self._described("rollout", problem, rollout, is_bad.float(), None, step))
        gaps, most = sampler_gaps(rollout), self.most_gap_nats
        if bool((gaps > most).any()):
            text = f"the sampler's log-probs are not those of the training forward (nats per token, most {most:g})"
            raise CheckError(self._described("sampler", text, rollout, gaps * (gaps > most), None, step))

    def first_minibatch(self, minibatch: Rollout, retain: RetainBatch | None, gap: float, *, step: int) -> None:
        """Raise :class:`CheckError` where the log-probs of a fresh rollout are not those of the policy that sampled it.

        ``gap``: mean size of log(new / old) in the worst row, nats per token, before the first update of a step. A NaN
        is left to the check of the gradient.
        """
        most = self.most_gap_nats
        if self._config.checks == "on" and gap > most:
            ratio = "the first minibatch has a ratio other than 1"
            text = f"{ratio}: its log-probs are {gap:.3g} nats per token off (most {most:g})"
            gaps = self._policy.gaps(minibatch)
            raise CheckError(self._described("first_minibatch", text, minibatch, gaps * (gaps > most), retain, step))

    def finite(self, statistics: Mapping[str, float]) -> None:
        """Raise FloatingPointError that names the statistics of a minibatch that are NaN or infinite."""
        if wrong := [f"{name} is {value}" for name, value in statistics.items() if not math.isfinite(value)]:
            raise FloatingPointError(", ".join(wrong))

    def skipped_update(
        self, minibatch: Rollout, retain: RetainBatch | None, error: FloatingPointError, *, in_a_row: int, step: int
    ) -> None:
        """Tell of an update that was skipped, the ``in_a_row``-th: the first leaves a dump, the last ends the run.

        Raises FloatingPointError after ``config.stop_after_skipped_updates``.
        """
        limit = self._config.stop_after_skipped_updates
        if in_a_row > 1 and in_a_row < limit:
            return
        text = f"{error}; {in_a_row} of {limit} such updates in a row"
        described = self._described("not_finite", text, minibatch, ~self._is_finite(minibatch), retain, step)
        if in_a_row >= limit:
            raise FloatingPointError(described) from error
        if self._policy.processes.is_first:
            warnings.warn(f"{described}; this update is skipped", RuntimeWarning, stacklevel=3)

    def _is_finite(self, rollout: Rollout) -> Tensor:
        """Whether all that a row brings into the loss is finite, the policy's own log-probs included, bool [B]."""
        is_finite = self._policy.gaps(rollout).isfinite()
        for name in ("advantages", "returns", "old_values", "old_logprobs"):
            is_finite &= getattr(rollout, name).isfinite().all(dim=1)
        return is_finite

    def _described(
        self, check: str, text: str, rollout: Rollout, badness: Tensor, retain: RetainBatch | None, step: int
    ) -> str:
        """The message: step, what is wrong, the worst rows, and where the dump lies."""
        worst = torch.argsort(badness.float().nan_to_num(nan=math.inf), descending=True, stable=True).tolist()
        chosen = [row for row in worst if bool(badness[row] != 0)][:_SHOWN]
        count = int((badness != 0).sum())
        named = "; ".join(_row_text(row, rollout.samples[row], float(badness[row])) for row in chosen)
        where = f"in {count} of {len(rollout)} rows, such as {named}" if chosen else "no single row stands out"
        message = f"step {step}: {text}: {where}"
        return f"{message}; {self._dumps.write(check, message, rollout, retain, step=step)}"


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


def _row_text(row: int, sample: Sample, badness: float) -> str:
    prompt = f"{sample.prompt:.40}" if sample.prompt else f"{sample.prompt_ids[-8:]}"
    return f"row {row} ({prompt!r}{'' if badness == 1 else f', {badness:.3g}'})"
