"""Watches an update: records what each minibatch did with the tokens of some rows.

The trainer shows the recorder its own tensors, and autograd leaves the gradients in them. No forward or backward pass
runs a second time, and nothing that training depends on changes. This module knows losses, nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..losses import value_terms
from ..policy_losses import parts_of_mean, policy_terms
from ..types import Evaluation, Rollout
from .records import ClipSide, MinibatchTrace, SkipReason, TokenUpdate


@dataclass(frozen=True)
class _Watched:
    part: Rollout
    new: Evaluation
    rows: list[tuple[int, int]]  # (row of the microbatch, row of the rollout)


class Recorder:
    """Watches ``rows`` of ``rollout`` through one update.

    ``marked``: the same rollout with a distinct object for every sample; the update must run on this one.
    ``has_own_loss``: the policy loss is not the config's. ``minibatches``: all minibatches, in order.
    ``updates[row][t]``: an entry for each minibatch that the row was in; none for a token that an environment wrote.
    """

    def __init__(self, rollout: Rollout, rows: Sequence[int], config: Config, *, has_own_loss: bool = False) -> None:
        # Shuffled minibatches carry their samples along. So a row is known by its sample, if no two rows share one.
        self.marked = replace(rollout, samples=[replace(sample) for sample in rollout.samples])
        self.minibatches: list[MinibatchTrace] = []
        lengths = rollout.generation.lengths.tolist()
        self.updates: dict[int, list[list[TokenUpdate]]] = {row: [[] for _ in range(lengths[row])] for row in rows}
        self._row_of = {id(self.marked.samples[row]): row for row in rows}
        self._config = config
        self._has_clip = config.policy_loss == "clip" and not has_own_loss
        self._per_epoch = len(rollout) // config.minibatch
        self._watched: list[_Watched] = []
        self._num_tokens = 0

    def watch(self, part: Rollout, new: Evaluation, *, num_tokens: int) -> None:
        """Note a microbatch before its backward pass. ``num_tokens``: of the whole minibatch."""
        self._num_tokens = num_tokens
        rows = [
            (place, self._row_of[id(sample)]) for place, sample in enumerate(part.samples) if id(sample) in self._row_of
        ]
        if rows:
            for tensor in (new.logprobs, new.values):
                if tensor.requires_grad:
                    tensor.retain_grad()
            self._watched.append(_Watched(part, new, rows))

    def restart(self) -> None:
        """Forget the minibatch's microbatches: memory ran out, and it begins again in smaller ones."""
        self._watched = []

    def close(
        self, statistics: Mapping[str, float], *, grad_norm: float | None = None, learning_rate: float | None = None
    ) -> None:
        """Record the minibatch, which is over. Without ``grad_norm`` its gradient was thrown away."""
        number = len(self.minibatches)
        for watched in self._watched:
            self._take(watched, number)
        self._watched = []
        epoch, index = divmod(number, self._per_epoch)
        reason: SkipReason = "" if grad_norm is not None else self._skip_reason(statistics)
        self.minibatches.append(
            MinibatchTrace(epoch, index, self._num_tokens, reason, grad_norm, learning_rate, dict(statistics))
        )

    def _skip_reason(self, statistics: Mapping[str, float]) -> SkipReason:
        """Why an update skipped a minibatch. It checks the ratio first, so any other skip means a non-finite number."""
        limit = self._config.max_mean_ratio
        return "ratio" if limit is not None and statistics["policy/ratio"] > limit else "not finite"

    @torch.no_grad()
    def _take(self, watched: _Watched, number: int) -> None:
        """Take the numbers of the watched rows from the tensors of their microbatch."""
        part, new, config = watched.part, watched.new, self._config
        mask = part.generation.action_mask
        policy = policy_terms(
            new.logprobs, part.old_logprobs, part.advantages, mask, clip=config.policy_clip,
            clip_high=config.policy_clip_up, dual_clip=config.policy_dual_clip,
        )  # fmt: skip
        value = value_terms(new.values, part.old_values, part.returns, clip=config.value_clip)
        columns = {
            "logprob": new.logprobs,
            "ratio": policy.ratio,
            "logprob_gradient": _gradient(new.logprobs),
        }
        clip = {
            "surrogate": policy.plain,
            "clipped_surrogate": policy.clipped,
            "policy_loss": policy.loss,
            "unclipped_gradient": self._in_the_mean(policy.plain, mask),  # d exp(x) / dx is exp(x) again
        }
        critic = {
            "new_value": new.values,
            "clipped_value": value.clipped_values,
            "value_loss": torch.maximum(value.plain, value.clipped) / 2,
            "value_gradient": _gradient(new.values),
        }
        kept = columns | (clip if self._has_clip else {}) | (critic if config.has_critic else {})
        missing: dict[str, Any] = dict.fromkeys((clip | critic).keys() - kept.keys())
        numbers = {name: x.tolist() for name, x in kept.items()}
        is_cut, is_value_cut = (policy.is_cut & self._has_clip).tolist(), value.is_cut.tolist()
        is_action = mask.tolist()
        for place, row in watched.rows:
            for t, history in enumerate(self.updates[row]):
                if not is_action[place][t]:
                    continue
                here: dict[str, float] = {name: x[place][t] for name, x in numbers.items()}
                side: ClipSide = "" if not is_cut[place][t] else "above" if here["ratio"] > 1 else "below"
                is_value_clipped = config.has_critic and is_value_cut[place][t]
                history.append(
                    TokenUpdate(
                        minibatch=number,
                        is_clipped=is_cut[place][t],
                        clip_side=side,
                        is_value_clipped=is_value_clipped,
                        **here,
                        **missing,
                    )
                )

    @torch.enable_grad()
    def _in_the_mean(self, losses: Tensor, mask: Tensor) -> Tensor:
        """What each token brings into the loss of the minibatch, [B, T]."""
        config = self._config
        parts, count = parts_of_mean(
            losses, mask, kind=config.loss_mean, response_length=config.response_length, num_tokens=self._num_tokens,
            num_sequences=config.minibatch,
        )  # fmt: skip
        return parts / count


def _gradient(tensor: Tensor) -> Tensor:
    """The gradient that the backward pass left; 0 if the loss does not depend on the tensor."""
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
