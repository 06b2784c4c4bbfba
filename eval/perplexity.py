"""Perplexity of held-out text: exp of the total NLL over the number of scored tokens; every token is scored once.

The first token of a text has no context and is not scored. Texts longer than the model's context are cut into windows
that overlap, each token scored in the first window that holds it. This module knows token sequences, not texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ppo.backbone import context_length

from .teacher import teacher_force


@dataclass(frozen=True)
class Perplexity:
    """``nll`` summed over ``num_tokens`` scored tokens, nats."""

    nll: float
    num_tokens: int

    @property
    def value(self) -> float:
        """exp(nll / num_tokens), capped at e^700 so that it stays a number."""
        return math.exp(min(self.nll / self.num_tokens, 700.0))


def perplexity(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    window: int | None = None,
    overlap: int = 0,
    batch_tokens: int = 8192,
    chunk_tokens: int = 512,
) -> Perplexity:
    """Token-weighted perplexity of all sequences together.

    ``window``: the longest input; None takes the model's context. ``overlap``: how many tokens of a window the next one
    sees again as context, at least one. Raises ValueError when no sequence has two tokens.
    """
    window = context_length(model) if window is None else window
    pieces = [piece for s in sequences if len(s) >= 2 for piece in windows(len(s), window, overlap)]
    texts = [s for s in sequences if len(s) >= 2 for _ in windows(len(s), window, overlap)]
    if not pieces:
        raise ValueError(f"none of the {len(sequences)} held-out sequences has two tokens: perplexity is not defined")
    statistics = teacher_force(
        model,
        [text[begin:end] for text, (begin, _, end) in zip(texts, pieces, strict=True)],
        starts=[first - begin for begin, first, _ in pieces],
        batch_tokens=batch_tokens,
        chunk_tokens=chunk_tokens,
    )
    return Perplexity(sum(s.nll for s in statistics), sum(len(s) - s.start for s in statistics))


def windows(length: int, window: int | None, overlap: int = 0) -> list[tuple[int, int, int]]:
    """(begin, first scored, end) of every window over a text of ``length`` tokens; scored ranges part 1 … length-1.

    Example: length 8, window 4, overlap 2 -> (0, 1, 4), (2, 4, 6), (4, 6, 8).
    """
    if window is None or length <= window:
        return [(0, 1, length)]
    overlap = max(overlap, 1)
    if overlap >= window:
        raise ValueError(f"overlap={overlap} must be below window={window}")
    parts, scored = [(0, 1, window)], window
    while scored < length:
        begin = scored - overlap
        end = min(begin + window, length)
        parts.append((begin, scored, end))
        scored = end
    return parts
