"""Rollouts on their way to the optimiser: joined, shuffled into minibatches, cut into microbatches.

Padding is bookkeeping, so it lives here: rows of like length go together, columns that nobody uses are cut off.
This module knows nothing about losses or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .types import Generation, Rollout

_RESPONSE_FIELDS = (
    "old_logprobs", "old_values", "ref_logprobs", "kl", "rewards", "advantages", "returns", "token_rewards",
)  # fmt: skip


class RolloutBuffer:
    """Holds the sequences of one or several rollouts and hands them out in shuffled minibatches.

    ``generator`` (CPU) decides the order. ``add`` pads rollouts of other shapes to a common one.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._rollouts: list[Rollout] = []

    def __len__(self) -> int:
        return sum(len(rollout) for rollout in self._rollouts)

    def add(self, rollout: Rollout) -> None:
        """Take in one more rollout."""
        self._rollouts.append(rollout)

    def contents(self) -> Rollout:
        """All sequences as one rollout. Raises ValueError when the buffer is empty."""
        if not self._rollouts:
            raise ValueError("the rollout buffer is empty: add a rollout first")
        if len(self._rollouts) > 1:
            self._rollouts = [join(self._rollouts)]
        return self._rollouts[0]

    def minibatches(self, size: int) -> Iterator[Rollout]:
        """One epoch: every sequence once, in random minibatches of ``size``. Raises ValueError unless it divides."""
        rollout = self.contents()
        if len(rollout) % size != 0:
            raise ValueError(f"minibatch={size} does not divide the {len(rollout)} sequences of the buffer")
        order = torch.randperm(len(rollout), generator=self._generator)
        for indices in torch.split(order, size):
            yield rows(rollout, indices)


def microbatches(attention_mask: Tensor, *, size: int | None = None, tokens: int | None = None) -> list[Tensor]:
    """Index tensors that part the rows of a batch, longest rows first; one microbatch if neither limit is given.

    attention_mask [B, P+T]. ``size``: rows a microbatch. ``tokens``: most tokens a microbatch, counted as rows x
    longest row, as :func:`align` lays them out; a row longer than the budget goes alone. Rows are sorted by length, so
    little padding is computed.
    """
    lengths = attention_mask.sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    if size is not None:
        return list(torch.split(order, size))
    if tokens is None:
        return [order]
    parts, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        count = max(tokens // longest, 1)
        parts.append(order[start : start + count])
        start += count
    return parts


def rows(rollout: Rollout, indices: Tensor) -> Rollout:
    """Some sequences of a rollout, in the given order; padding is kept."""
    chosen: dict[str, Any] = {
        "generation": rollout.generation.rows(indices),
        "samples": [rollout.samples[i] for i in indices.tolist()],
    }
    on_device = indices.to(rollout.scores.device)
    for field in fields(rollout):
        value = getattr(rollout, field.name)
        if isinstance(value, Tensor):
            chosen[field.name] = value[on_device]
    return replace(rollout, **chosen)


@dataclass(frozen=True)
class Aligned:
    """Prompts and responses without a gap between them, padded on the right: int64 and bool [B, S]; lengths [B].

    S is the longest row, not the longest prompt and the longest response: a row with a long prompt and a short response
    beside its opposite costs neither of them anything.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_lengths: Tensor


def align(generation: Generation) -> Aligned:
    """A generation as the training forward reads it."""
    mask = generation.attention_mask
    order = torch.argsort(mask.byte(), dim=1, descending=True, stable=True)[:, : int(mask.sum(dim=1).max())]
    return Aligned(generation.input_ids.gather(1, order), mask.gather(1, order), generation.prompt_mask.sum(dim=1))


def trim(generation: Generation) -> Generation:
    """Cut the padding columns that no row needs: left of all prompts, right of all responses."""
    left = generation.prompt_length - int(generation.prompt_mask.sum(dim=1).max())
    length = max(int(generation.lengths.max()), 1)
    return _resize(generation, left=-left, right=length - generation.tokens.shape[1])


def trim_rollout(rollout: Rollout) -> Rollout:
    """:func:`trim` for everything in a rollout."""
    generation = trim(rollout.generation)
    length = generation.tokens.shape[1]
    cut = {name: x[:, :length] for name in _RESPONSE_FIELDS if (x := getattr(rollout, name)) is not None}
    return replace(rollout, generation=generation, **cut)


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout out of many: prompts padded on the left, responses on the right, to the widest of them."""
    prompt_length = max(r.generation.prompt_length for r in rollouts)
    length = max(r.generation.tokens.shape[1] for r in rollouts)
    resized = [
        _resize(
            r.generation, left=prompt_length - r.generation.prompt_length, right=length - r.generation.tokens.shape[1]
        )
        for r in rollouts
    ]
    joined: dict[str, Any] = {}
    for name in _RESPONSE_FIELDS:
        parts = [getattr(r, name) for r in rollouts]
        if all(part is not None for part in parts):
            joined[name] = torch.cat([pad(part, (0, length - part.shape[1])) for part in parts])
    joined["scores"] = torch.cat([r.scores for r in rollouts])
    joined["samples"] = [sample for r in rollouts for sample in r.samples]
    joined["generation"] = _join_generations(resized)
    versions = {r.policy_version for r in rollouts}
    joined["policy_version"] = versions.pop() if len(versions) == 1 else None
    return replace(rollouts[0], **joined)


def _join_generations(generations: Sequence[Generation]) -> Generation:
    joined: dict[str, Any] = {}
    for field in fields(Generation):
        parts = [getattr(g, field.name) for g in generations]
        if all(isinstance(part, Tensor) for part in parts):
            joined[field.name] = _cat(parts) if field.name == "frozen_hidden" else torch.cat(parts)
    return replace(generations[0], **joined)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths, [B, S, H]."""
    length = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, 0, 0, length - part.shape[1])) for part in parts])


def _resize(generation: Generation, *, left: int, right: int) -> Generation:
    """Add (or, if negative, cut) padding columns left of the prompts and right of the responses."""
    changed: dict[str, Any] = {
        name: pad(value, (left, 0) if name.startswith("prompt_") else (0, right))
        for name, value in vars(generation).items()
        if isinstance(value, Tensor) and value.dim() == 2
    }
    return replace(generation, **changed)
