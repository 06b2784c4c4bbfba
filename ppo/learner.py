"""One minibatch in, moved weights out: its gradient, the checks, a step of the optimiser.

Where the weights did not move, it says why.

The gradient is added up microbatch by microbatch, and how the minibatch is split does not change it. With several
processes each one takes its own rows, and the sum over the processes is the gradient of the whole minibatch. This
module knows the order within one such step, not how many steps an update takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .buffer import microbatches, rows, trim_rollout, without_rows
from .checkpoint.run_state import Counters
from .checks.checks import Checks
from .config import Config
from .kl import KLPenalty
from .lm.tied_embedding import lean_tied_gradient
from .losses import positive_mask, ppo_loss
from .metrics import mean_gaps, numbers
from .optim.optimizer import Optimizer
from .policy import Policy
from .retain import RetainBatch, RetainLoss, RetainTexts
from .run.limits import retry_smaller
from .types import Observer, PolicyLoss, Rollout

_EMPTY = "update/empty_minibatches"


@dataclass(frozen=True)
class MinibatchResult:
    """What one minibatch came to.

    ``statistics``: its numbers, those of all processes. ``skipped``: the name of the metric that counts this skip; ""
    if the weights moved.
    """

    statistics: dict[str, float]
    skipped: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether no row of the minibatch is trained on."""
        return self.skipped == _EMPTY

    @property
    def log_ratio(self) -> float:
        """Mean size of log(new / old), nats."""
        return self.statistics["policy/log_ratio"]

    def moved_too_far(self, stop_kl_per_token: float | None) -> bool:
        """Whether the policy is further from the old one than a limit, if there is one."""
        return _exceeds(self.statistics["policy/approx_kl"], stop_kl_per_token)


class Measured:
    """The statistics of a minibatch, microbatch by microbatch.

    They stay on their device until all of them are there. So the host waits once a minibatch for them, however many
    microbatches it has.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, float, Tensor | float]] = []
        self._gaps: list[Tensor] = []

    def add(self, statistics: Mapping[str, Tensor | float], weight: float, *, gap: Tensor | None = None) -> None:
        """Add those of a microbatch, multiplied by ``weight``; ``gap``: of its worst row, nats per token."""
        self._parts += [(name, weight, value) for name, value in statistics.items()]
        self._gaps += [gap] if gap is not None else []

    def sums(self) -> tuple[dict[str, float], float]:
        """The sum of every statistic, and the largest gap. Here the host waits."""
        read = numbers([*(value for _, _, value in self._parts), *self._gaps])
        totals: dict[str, float] = {}
        for (name, weight, _), value in zip(self._parts, read, strict=False):
            totals[name] = totals.get(name, 0.0) + weight * value
        return totals, max([0.0, *read[len(self._parts) :]])


class Learner:
    """Turns minibatches into steps of the optimiser.

    ``has_own_parts``: the policy loss or the critic is not the library's, so what they raise or note may differ from
    process to process. ``retain_loss`` and ``retain_texts``: of PPO-ptx, both None where the run keeps no text.
    ``counters``: of the run;
    this object counts the updates skipped in a row.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        kl: KLPenalty,
        config: Config,
        *,
        policy_loss: PolicyLoss,
        checks: Checks,
        counters: Counters,
        retain_loss: RetainLoss | None = None,
        retain_texts: RetainTexts | None = None,
        has_own_parts: bool = False,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.kl = kl
        self.retain_loss = retain_loss
        self._policy_loss = policy_loss
        self._retain_texts = retain_texts
        self._has_own_parts = has_own_parts
        self._checks = checks
        self._counters = counters
        self._config = config

    @property
    def is_policy_waiting(self) -> bool:
        """Whether this PPO step trains the critic alone (``config.critic_warmup_steps``; VC-PPO, Yuan et al. 2025)."""
        return self._counters.step < self._config.critic_warmup_steps

    @property
    def num_updates(self) -> int:
        """Steps of the optimiser that moved the policy: its version. It is 0 while the policy waits for its critic."""
        return 0 if self.is_policy_waiting else self.optimizer.num_updates - self._counters.critic_updates

    def step(self, minibatch: Rollout, *, step: int, observer: Observer | None = None) -> MinibatchResult:
        """Move the weights once, unless the mean ratio is out of bounds or something is not finite.

        ``step``: the PPO step, for the schedule and for messages. As long as the policy is the one that the minibatch
        was sampled from, the ratio must be 1. Raises CheckError where it is not, and FloatingPointError after too many
        gradients in a row that are not finite.
        """
        retain = self.draw_retain()
        statistics, row_gap = self.gradient(minibatch, retain, observer)
        if minibatch.policy_version == self.num_updates:
            self._checks.first_minibatch(minibatch, retain, row_gap, step=step)
        result = self._move(minibatch, retain, statistics, step)
        if observer is not None:
            found = result.statistics
            observer.close(
                statistics, grad_norm=found.get("update/grad_norm"), learning_rate=found.get("update/learning_rate")
            )
        return result

    def _trained_on(self, minibatch: Rollout) -> Rollout:
        """The minibatch without actions in the rows that the config leaves out (``config.mask_overlong``)."""
        if not self._config.mask_overlong:
            return minibatch
        return without_rows(minibatch, ~minibatch.generation.layout.is_ended)

    def draw_retain(self) -> RetainBatch | None:
        """The text to keep that goes with the next minibatch, if the run has any."""
        return None if self._retain_texts is None else self._retain_texts.draw(torch.device("cpu"))

    def gradient(
        self, minibatch: Rollout, retain: RetainBatch | None, observer: Observer | None = None
    ) -> tuple[dict[str, float], float]:
        """Leave the gradient of a minibatch in the parameters; returns its statistics, those of all processes.

        The second result is the gap of the worst row: the mean size of log(new / old) of its tokens, nats.

        Where memory runs out, the minibatch starts again with smaller microbatches. With split weights the error is
        raised, because the other processes wait in the same forward.
        """
        policy, minibatch = self.policy, self._trained_on(minibatch)
        processes = policy.processes

        def shrink() -> bool:
            self.optimizer.zero_grad()
            if observer is not None:
                observer.restart()
            is_alone = processes.count == 1 or self._config.sharding == "none"
            return is_alone and policy.limits.halve_microbatch(len(minibatch) // processes.count)

        with lean_tied_gradient(policy.model), self._together(is_split=False):
            totals, row_gap = retry_smaller(lambda: self._own_gradients(minibatch, retain, observer), shrink)
        if self.is_policy_waiting:  # weights that an own critic shares with the policy wait, too
            own = policy.actor.value_parameter_names()
            for name, parameter in policy.actor.trained_parameters().items():
                if name not in own:
                    parameter.grad = None
        processes.sum_gradients(list(policy.actor.trained_parameters().values()))
        add = processes.sum_named if self._has_own_parts else processes.sum_numbers
        return add(totals), processes.max(row_gap)

    def _together(self, *, is_split: bool) -> AbstractContextManager[None]:
        """Where parts that are not the library's are asked: an error on one process is raised on all of them.

        Whole weights: around the gradient of a minibatch. Split weights (``is_split``): around a loss alone, because no
        process may leave a forward or a backward pass that the others are in.
        """
        is_here = self._has_own_parts and is_split == (self._config.sharding == "fsdp")
        return self.policy.processes.together() if is_here else nullcontext()

    def _move(
        self, minibatch: Rollout, retain: RetainBatch | None, statistics: dict[str, float], step: int
    ) -> MinibatchResult:
        if retain is None and not bool(self._trained_on(minibatch).generation.layout.action_mask.any()):
            self.optimizer.zero_grad()  # momentum alone would move the weights
            return MinibatchResult(statistics, skipped=_EMPTY)
        if _exceeds(statistics["policy/ratio"], self._config.max_mean_ratio):
            self.optimizer.zero_grad()
            return MinibatchResult(statistics, skipped="update/skipped_minibatches")
        try:
            self._checks.finite(statistics)
            norm, rate = self.optimizer.step(step)
        except FloatingPointError as error:
            self.optimizer.zero_grad()
            in_a_row = self._counters.skipped()
            self._checks.skipped_update(minibatch, retain, error, in_a_row=in_a_row, step=step)
            return MinibatchResult(statistics, skipped="update/skipped_not_finite")
        self._counters.moved(is_critic_alone=self.is_policy_waiting)
        return MinibatchResult(statistics | {"update/grad_norm": norm, "update/learning_rate": rate})

    def _own_gradients(
        self, minibatch: Rollout, retain: RetainBatch | None, observer: Observer | None
    ) -> tuple[dict[str, float], float]:
        """The statistics of this process's rows, and the largest gap of a row."""
        layout = minibatch.generation.layout
        actions = layout.action_mask
        num_tokens, num_sequences = max(int(actions.sum()), 1), max(int(actions.any(dim=1).sum()), 1)
        num_positive = int(positive_mask(minibatch, self._config).sum()) if self._config.positive_coef > 0 else 0
        measured = Measured()
        for indices, weight in self._own_microbatches(layout.attention_mask):
            part = trim_rollout(rows(minibatch, indices))
            new = self.policy.evaluate(part.generation)
            with self._together(is_split=True):
                loss, statistics = ppo_loss(
                    new, part, self._config, self._policy_loss, kl_coef=self.kl.coef, num_tokens=num_tokens,
                    num_sequences=num_sequences, num_positive=num_positive, is_policy_waiting=self.is_policy_waiting,
                )  # fmt: skip
            if observer is not None:
                observer.watch(part, new, num_tokens=num_tokens)
            (weight * loss).backward()  # type: ignore[no-untyped-call]
            gaps = mean_gaps(new.logprobs.detach(), part.old_logprobs, part.generation.action_mask)
            measured.add(statistics, weight, gap=gaps.max())
        if self.retain_loss is not None and retain is not None:
            measured.add({"retain/loss": 0.0}, 1.0)  # also where this process has no row of it
            self._own_retain_gradients(self.retain_loss, retain, measured)
        return measured.sums()

    def _own_retain_gradients(self, retain_loss: RetainLoss, batch: RetainBatch, measured: Measured) -> None:
        num_tokens, actor, is_waiting = batch.num_predictions, self.policy.actor, self.is_policy_waiting
        parts = self._own_microbatches(batch.mask)
        # No backward pass splits the weights again while the policy waits; whole, they would miss the optimiser's step.
        with self.policy.readable() if is_waiting else nullcontext():
            for indices, weight in parts:
                ids, mask = batch.ids[indices], batch.mask[indices]
                loss_of = partial(retain_loss, actor.backbone, ids, mask, num_tokens=num_tokens)
                with self.policy.precision(), torch.set_grad_enabled(not is_waiting):
                    loss = actor.run(loss_of)
                if not is_waiting:
                    (weight * self._config.retain_coef * loss).backward()  # type: ignore[no-untyped-call]
                measured.add({"retain/loss": loss.detach()}, weight)

    def _own_microbatches(self, attention_mask: Tensor) -> list[tuple[Tensor, float]]:
        """This process's rows of a batch in microbatches, each with the weight 1.

        With split weights all processes need the same number of microbatches. A process with fewer runs row 0 again,
        with weight 0.
        """
        processes, limits = self.policy.processes, self.policy.limits
        own = processes.deal(attention_mask)
        split = partial(microbatches, size=limits.microbatch, tokens=limits.microbatch_tokens)
        parts = [(own[indices], 1.0) for indices in split(attention_mask[own])] if len(own) else []
        missing = int(processes.max(len(parts))) - len(parts) if self._config.sharding == "fsdp" else 0
        return parts + [(torch.zeros(1, dtype=torch.long, device="cpu"), 0.0)] * missing


def _exceeds(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit
