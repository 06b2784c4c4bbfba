"""Rollouts on their way to the optimiser: they are joined, shuffled into minibatches and cut into microbatches.

Padding is handled here: rows of similar length go together, and columns that hold only padding are cut off. This module
knows nothing about losses or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .types import Generation, Layout, Responses, Rollout

_RESPONSE_FIELDS = (
    "old_logprobs", "old_values", "ref_logprobs", "kl", "rewards", "advantages", "returns", "token_rewards",
    "importance_weights",
)  # fmt: skip


class RolloutBuffer:
    """Holds the sequences of one or several rollouts and hands them out in shuffled minibatches.

    ``generator`` (CPU) decides the order. Rollouts of different widths are padded to the widest.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._rollouts: list[Rollout] = []

    def __len__(self) -> int:
        return sum(len(rollout) for rollout in self._rollouts)

    def add(self, rollout: Rollout) -> None:
        """Add one more rollout."""
        self._rollouts.append(rollout)

    def contents(self) -> Rollout:
        """All sequences as one rollout. Raises ValueError when the buffer is empty."""
        if not self._rollouts:
            raise ValueError("the rollout buffer is empty: add a rollout first")
        if len(self._rollouts) > 1:
            self._rollouts = [join(self._rollouts)]
        return self._rollouts[0]

    def minibatches(self, size: int) -> Iterator[Rollout]:
        """One epoch: every sequence once, in random minibatches of ``size``.

        Raises ValueError unless ``size`` divides the number of sequences.
        """
        rollout = self.contents()
        if len(rollout) % size != 0:
            raise ValueError(f"minibatch={size} does not divide the {len(rollout)} sequences of the buffer")
        order = torch.randperm(len(rollout), generator=self._generator, device="cpu")
        for indices in torch.split(order, size):
            yield rows(rollout, indices)


def microbatches(attention_mask: Tensor, *, size: int | None = None, tokens: int | None = None) -> list[Tensor]:
    """Split the rows of a batch, longest first: the row indices of each microbatch, int64.

    attention_mask [B, P+T], best on the CPU (:attr:`ppo.types.Generation.layout`). ``size``: rows in a microbatch.
    ``tokens``: most tokens in a microbatch, counted as its rows x its longest row, as :func:`align` lays them out; a
    row longer than that is a microbatch by itself. Without either there is one microbatch. Rows are sorted by length,
    so little padding is computed.
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
    """The given sequences of a rollout, in the given order. Padding is kept."""
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


def without_rows(rollout: Rollout, is_left_out: Tensor) -> Rollout:
    """The rollout without an action in some rows: what was measured there is 0, and no loss sees it.

    ``is_left_out`` bool [B] on the CPU.
    """
    generation, kept_here = rollout.generation, ~is_left_out.unsqueeze(1)
    keep = kept_here.to(generation.mask.device)
    kept = {name: x * keep for name in _RESPONSE_FIELDS if (x := getattr(rollout, name)) is not None}
    made = replace(generation, action_mask=generation.action_mask & keep)
    made = generation.handed_on(made, lambda it: replace(it, action_mask=it.action_mask & kept_here))
    return replace(rollout, generation=made, **kept)


@dataclass(frozen=True)
class Aligned:
    """Rows in which the response follows its prompt without a gap, padded on the right; see :func:`align`.

    ``input_ids`` int64 [B, S], ``attention_mask`` bool [B, S], ``prompt_lengths`` int64 [B]. S is the length of the
    longest row, prompt and response together. It is less than P+T unless one row has the longest of both.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_lengths: Tensor


def align(generation: Generation) -> Aligned:
    """A generation as the training forward reads it: all padding is moved to the right.

    Example (P = 3, T = 3, ``_`` is padding): _ a b | x _ _ and c d e | y z _ give a b x _ _ and c d e y z; S = 5.
    """
    mask, longest = generation.attention_mask, int(generation.layout.attention_mask.sum(dim=1).max())
    order = torch.argsort(mask.byte(), dim=1, descending=True, stable=True)[:, :longest]
    return Aligned(generation.input_ids.gather(1, order), mask.gather(1, order), generation.prompt_mask.sum(dim=1))


def trim(generation: Generation) -> Generation:
    """Cut the columns that are padding in every row: on the left of the prompts and on the right of the responses."""
    layout = generation.layout
    left = generation.prompt_length - int(layout.prompt_mask.sum(dim=1).max())
    length = max(int(layout.mask.sum(dim=1).max()), layout.actions_per_state)
    return _resize(generation, left=-left, right=length - generation.tokens.shape[1])


def trim_rollout(rollout: Rollout) -> Rollout:
    """:func:`trim` for the generation of a rollout and for all its [B, T] tensors."""
    generation = trim(rollout.generation)
    length = generation.tokens.shape[1]
    cut = {name: x[:, :length] for name in _RESPONSE_FIELDS if (x := getattr(rollout, name)) is not None}
    return replace(rollout, generation=generation, **cut)


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout out of many. Prompts are padded on the left and responses on the right, to the widest.

    What only some rollouts know is None: ``policy_version`` (also where two differ), ``token_rewards``, and of the
    generation ``values``, ``frozen_hidden`` and ``info``. ``metrics`` are the first rollout's. Raises ValueError where
    some rollouts have ``ref_logprobs``, ``importance_weights``, ``kept_sets``, ``context`` or ``state_temperatures``
    and others have not: the KL of the others would be 0, and so on, without a word. The same for different numbers of
    actions a state.
    """
    for name in ("ref_logprobs", "importance_weights", "kept_sets", "context", "state_temperatures"):
        owners = [r if hasattr(r, name) else r.generation for r in rollouts]
        if len({getattr(owner, name) is None for owner in owners}) > 1:
            raise ValueError(
                f"some rollouts have {name} and others have not: they are of different runs, keep them apart"
            )
    if len(counts := {r.generation.actions_per_state for r in rollouts}) > 1:
        raise ValueError(f"some rollouts have other numbers of actions a state than others: {sorted(counts)}")
    joined: dict[str, Any] = {"generation": _join_generations([r.generation for r in rollouts])}
    length = joined["generation"].tokens.shape[1]
    for name in _RESPONSE_FIELDS:
        joined[name] = _join_tokens([getattr(r, name) for r in rollouts], length)
    joined["scores"] = torch.cat([r.scores for r in rollouts])
    joined["samples"] = [sample for r in rollouts for sample in r.samples]
    versions = {r.policy_version for r in rollouts}
    joined["policy_version"] = versions.pop() if len(versions) == 1 else None
    return replace(rollouts[0], **joined)


def join_responses(parts: Sequence[Responses]) -> Responses:
    """One set of responses out of several, such as those of several draws.

    Metrics whose names begin with ``time/`` are summed; of others the largest counts, but the generation's are those
    of the first part. ``policy_version`` is None where two differ. The gap to the sampler is reported if all parts know
    it, and not checked if one part was drawn elsewhere. Raises ValueError where the reward gave scores in one part and
    token rewards in another.
    """
    if len({part.raw_token_rewards is None for part in parts}) > 1:
        raise ValueError("the reward gave scores in one draw and token rewards in another: always give one kind")
    generation = _join_generations([part.generation for part in parts])
    joined = {
        name: _join_tokens([getattr(part, name) for part in parts], generation.tokens.shape[1])
        for name in ("raw_token_rewards", "old_logprobs", "old_values", "ref_logprobs")
    }
    metrics = {
        name: (sum if name.startswith("time/") else max)(part.metrics[name] for part in parts)
        for name in parts[0].metrics
    }
    versions = {part.policy_version for part in parts}
    return Responses(
        generation=generation,
        samples=[sample for part in parts for sample in part.samples],
        scores=torch.cat([part.scores for part in parts]),
        metrics=metrics,
        policy_version=versions.pop() if len(versions) == 1 else None,
        is_compared=all(part.is_compared for part in parts),
        is_given=any(part.is_given for part in parts),
        **joined,  # type: ignore[arg-type]
    )


def response_rows(responses: Responses, indices: Tensor) -> Responses:
    """The given responses, in the given order. Padding is kept."""
    chosen: dict[str, Any] = {
        "generation": responses.generation.rows(indices),
        "samples": [responses.samples[i] for i in indices.tolist()],
    }
    for field in fields(responses):
        value = getattr(responses, field.name)
        if isinstance(value, Tensor):
            chosen[field.name] = value[indices.to(value.device)]
    return replace(responses, **chosen)


def _join_tokens(parts: Sequence[Tensor | None], length: int) -> Tensor | None:
    """Tensors [b, up to T] as one [B, T], padded on the right; None if one of them is."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return torch.cat([pad(part, (0, length - part.shape[1])) for part in known])


def _join_generations(generations: Sequence[Generation]) -> Generation:
    """One generation, with prompts padded on the left and responses on the right, to the widest."""
    prompt_length = max(g.prompt_length for g in generations)
    length = max(g.tokens.shape[1] for g in generations)
    generations = [
        _resize(g, left=prompt_length - g.prompt_length, right=length - g.tokens.shape[1]) for g in generations
    ]
    joined: dict[str, Any] = {}
    for field in fields(Generation):
        parts = [getattr(g, field.name) for g in generations]
        if all(isinstance(part, Tensor) for part in parts):
            joined[field.name] = _cat_padded(parts) if field.name == "frozen_hidden" else torch.cat(parts)
        elif field.name != "metrics":
            known = all(part is not None for part in parts)
            joined[field.name] = [one for part in parts for one in part] if known else None
    return replace(generations[0], **joined)


def _cat_padded(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors [b, s, H] of different b and s to one [B, S, H]."""
    length = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, 0, 0, length - part.shape[1])) for part in parts])


def _resize(generation: Generation, *, left: int, right: int) -> Generation:
    """Add padding columns on the left of the prompts and on the right of the responses; a negative number cuts them."""
    states = right // generation.actions_per_state  # columns are cut and added by whole states
    of_states = ("context", "state_temperatures")
    changed: dict[str, Any] = {
        name: pad(value, (left, 0) if name.startswith("prompt_") else (0, states if name in of_states else right))
        for name, value in vars(generation).items()
        if isinstance(value, Tensor) and value.dim() == 2
    }
    if generation.kept_sets is not None:
        changed["kept_sets"] = pad(generation.kept_sets, (0, 0, 0, right))

    def resized(layout: Layout) -> Layout:
        mask, action_mask = (pad(mask, (0, right)) for mask in (layout.mask, layout.action_mask))
        return replace(layout, prompt_mask=pad(layout.prompt_mask, (left, 0)), mask=mask, action_mask=action_mask)

    return generation.handed_on(replace(generation, **changed), resized)
