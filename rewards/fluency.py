"""A fluency band: a penalty on responses that a frozen reference model finds too unlikely or too likely.

NLL is in nats per token under the *frozen* model, given the prompt. Loops and memorised text lie below the band,
gibberish lies above it. This module knows nothing about the true suffix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppo.lm.backbone import Backbone, evaluation_mode
from ppo.types import Sample

MeanNLL = Callable[[Sequence[Sample]], Sequence[float]]
"""Samples to nats per response token."""


@dataclass(frozen=True)
class FluencyBand:
    """Measure: how far the NLL of a response lies outside [low, high], in nats per token, at most ``cap``.

    It is 0 inside the band. Give it a negative weight. ``nll`` maps samples to nats per token, see :class:`ModelNLL`.
    """

    nll: MeanNLL
    low: float
    high: float
    cap: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"the band [{self.low}, {self.high}] must satisfy 0 <= low < high (nats per token)")
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap={self.cap} must be positive and finite: it bounds the worst score")

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [min(self.cap, max(0.0, self.low - x, x - self.high)) for x in self.nll(samples)]

    @property
    def signature(self) -> str:
        """The band in one line."""
        return f"fluency-band|low:{self.low}|high:{self.high}|cap:{self.cap}|unit:nats-per-token"


class ModelNLL:
    """Mean NLL of a response given its prompt under a frozen causal LM, nats per token, EOS included."""

    def __init__(self, model: nn.Module, *, batch_tokens: int = 8192, chunk_tokens: int = 1024) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.chunk_tokens = chunk_tokens

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return continuation_nll(
            self.model,
            [s.prompt_ids for s in samples],
            [s.ids for s in samples],
            batch_tokens=self.batch_tokens,
            chunk_tokens=self.chunk_tokens,
        )


@torch.no_grad()
def continuation_nll(
    model: nn.Module,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
    chunk_tokens: int = 1024,
) -> list[float]:
    """Mean NLL of each continuation given its context, nats per token; [N] and [N] token lists -> N floats.

    A batch holds sequences of similar length, at most ``batch_tokens`` padded tokens (or one longer sequence). Only
    continuation tokens pass the output layer, ``chunk_tokens`` at a time. ValueError for an empty context or
    continuation, whose NLL is not defined.
    """
    for i, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        if not context or not continuation:
            raise ValueError(
                f"pair {i} has {len(context)} context and {len(continuation)} continuation tokens: "
                "NLL needs at least one of each"
            )
    lengths = [len(c) + len(r) for c, r in zip(contexts, continuations, strict=True)]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    backbone, result, start = Backbone(model), [0.0] * len(lengths), 0
    with evaluation_mode(model):
        while start < len(order):
            part = order[start : start + max(1, batch_tokens // lengths[order[start]])]
            pairs = [(contexts[i], continuations[i]) for i in part]
            totals = sequence_nll(backbone, pairs, chunk_tokens=chunk_tokens).tolist()
            for i, total in zip(part, totals, strict=True):
                result[i] = total / len(continuations[i])
            start += len(part)
    return result


def sequence_nll(
    backbone: Backbone, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, chunk_tokens: int
) -> Tensor:
    """Summed NLL of each continuation given its context, nats, float32 [B]. One forward pass covers all pairs.

    The result is differentiable. With gradients on, the backward pass computes each chunk of logits again.
    """
    device = next(backbone.model.parameters()).device
    rows = [[*context, *continuation] for context, continuation in pairs]
    width = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    place = torch.arange(width, device=device)
    mask = place < torch.tensor([[len(row)] for row in rows], device=device)
    is_scored = mask & (place >= torch.tensor([[len(context)] for context, _ in pairs], device=device))
    before = backbone(input_ids, mask).before_logits[:, :-1][is_scored[:, 1:]]
    losses = _token_nll(before, backbone.output_layer, input_ids[is_scored], chunk_tokens)
    return torch.zeros(is_scored.shape, dtype=losses.dtype, device=device).masked_scatter(is_scored, losses).sum(dim=1)


def _token_nll(rows: Tensor, output_layer: Callable[[Tensor], Tensor], tokens: Tensor, chunk_tokens: int) -> Tensor:
    def one_chunk(rows: Tensor, tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output_layer(rows).float(), tokens, reduction="none")

    parts = []
    for start in range(0, rows.shape[0], chunk_tokens):
        part = slice(start, start + chunk_tokens)
        if torch.is_grad_enabled():
            parts.append(checkpoint(one_chunk, rows[part], tokens[part], use_reentrant=False))
        else:
            parts.append(one_chunk(rows[part], tokens[part]))
    return torch.cat(parts)
