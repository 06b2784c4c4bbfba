"""The numbers that describe a step: means over its minibatches, and a summary of its rollout.

Every name is ``area/quantity``. This module computes nothing that training depends on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from .advantages import masked_mean
from .config import Config
from .importance import importance_metrics, sampler_metrics
from .types import Generation, Rollout

_LEAST_TOKENS = 8


def numbers(scalars: Iterable[Tensor | float]) -> list[float]:
    """Scalars as numbers of the host. Those of another device than the CPU come in one copy: the host waits once."""
    known = list(scalars)
    far = [x for x in known if isinstance(x, Tensor) and x.device.type != "cpu"]
    if not far:
        return [float(x) for x in known]
    copied = iter(torch.stack([x.detach() if x.is_floating_point() else x.float() for x in far]).tolist())
    return [next(copied) if isinstance(x, Tensor) and x.device.type != "cpu" else float(x) for x in known]


def named_numbers(scalars: Mapping[str, Tensor | float]) -> dict[str, float]:
    """:func:`numbers` by name."""
    return dict(zip(scalars, numbers(scalars.values()), strict=True))


class Averages:
    """The mean of every named number, and the count of every named event."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._added = 0
        self._counts: dict[str, float] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Include the numbers of one minibatch."""
        self._added += 1
        for name, value in values.items():
            self._totals[name] = self._totals.get(name, 0.0) + value

    def count(self, name: str) -> None:
        """Count an event once more."""
        self._counts[name] = self._counts.get(name, 0.0) + 1

    def means(self) -> dict[str, float]:
        """All means, ``update/minibatches`` (how many were added), and all counts."""
        means = {name: total / self._added for name, total in self._totals.items()}
        return means | {"update/minibatches": float(self._added)} | self._counts


def mean_gaps(logprobs: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of two log-probs [B, T] over the tokens of each row, nats per token [B].

    The sum over a row of fewer than eight tokens is divided by eight: rounding alone can move a single token far (0.8
    nats between two forwards in bfloat16), but not the mean of a row.
    """
    distance = ((logprobs - others).abs() * mask).sum(dim=1)
    return distance / mask.sum(dim=1).clamp(min=_LEAST_TOKENS)


@torch.no_grad()
def rollout_metrics(rollout: Rollout, *, kl_coef: float) -> dict[str, float]:
    """Scores, KL (nats), entropy (nats per token), lengths (tokens) and distinct responses of a rollout."""
    generation, mask = rollout.generation, rollout.generation.action_mask
    count = generation.actions_per_state  # a number "per sequence" counts every state once, by the mean of its actions
    lengths = generation.lengths.float() / count
    distinct = {tuple(sample.ids) for sample in rollout.samples}
    metrics: dict[str, torch.Tensor | float] = {
        "score/mean": rollout.scores.mean(),
        "score/std": rollout.scores.std(correction=0),
        "score/min": rollout.scores.min(),
        "score/max": rollout.scores.max(),
        "kl/per_sequence": rollout.kl.sum(dim=1).mean() / count,
        "kl/per_token": masked_mean(rollout.kl, mask),
        "kl/coef": kl_coef,
        "reward/per_sequence": rollout.rewards.sum(dim=1).mean() / count,
        "value/mean": masked_mean(rollout.old_values, mask),
        "return/mean": masked_mean(rollout.returns, mask),
        "response/length_mean": lengths.mean(),
        "response/length_min": lengths.min(),
        "response/ended_share": generation.is_ended.float().mean(),
        "response/distinct_share": len(distinct) / len(rollout),
        "response/entropy": masked_mean(generation.entropy, mask),
        "response/logprob_per_sequence": rollout.old_logprobs.sum(dim=1).mean() / count,
    }
    return named_numbers(metrics) | turn_metrics(generation) | dict(generation.metrics)


def turn_metrics(generation: Generation) -> dict[str, float]:
    """Of responses in which an environment wrote: ``response/actions_mean`` (tokens of the policy),
    ``response/turns_mean`` (its turns), ``response/written_share`` (the environment's share of the tokens).

    Nothing where no environment wrote. Turns with nothing written in between count as one.
    """
    mask, actions = generation.layout.mask, generation.layout.action_mask
    num_actions, num_tokens = int(actions.sum()), int(mask.sum())
    if num_actions == num_tokens:
        return {}
    begins = actions & ~pad(actions, (1, -1))
    return {
        "response/actions_mean": num_actions / len(generation),
        "response/turns_mean": int(begins.sum()) / len(generation),
        "response/written_share": 1 - num_actions / num_tokens,
    }


def off_policy_metrics(rollout: Rollout, config: Config, *, is_compared: bool) -> dict[str, float]:
    """How far the sampler is from the training forward, and what its importance weights came to, where it has some.

    ``is_compared``: both measured log-probs. Then there is :func:`ppo.importance.sampler_metrics`, and
    ``rollout/sampler_gap``: the largest row mean of the gap, nats per token.
    """
    old, drawn, mask = rollout.old_logprobs, rollout.generation.logprobs, rollout.generation.action_mask
    metrics: dict[str, float] = {}
    if is_compared:
        metrics["rollout/sampler_gap"] = float(mean_gaps(drawn, old, mask).max())
        metrics |= sampler_metrics(old, drawn, mask)
    if config.importance != "off" and rollout.importance_weights is not None:
        metrics |= importance_metrics(
            rollout.importance_weights, old, drawn, mask, level=config.importance, cap=config.importance_cap
        )
    return metrics
