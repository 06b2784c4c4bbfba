"""Perplexity of held-out text: exp of the total NLL divided by the number of scored tokens, each scored once.

The first token of a text has no context and is not scored. Texts longer than the model's context are cut into
overlapping windows. Each token is scored in the first window that holds it. This module knows token sequences, not
texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ppo.lm.backbone import context_length

from .teacher import TokenStatistics, teacher_force


@dataclass(frozen=True)
class Perplexity:
    """``nll`` summed over ``num_tokens`` scored tokens, nats."""

    nll: float
    num_tokens: int

    @property
    def value(self) -> float:
        """exp(nll / num_tokens), capped at e^700 so that it stays a number."""
        return math.exp(min(self.nll / self.num_tokens, 700.0))


@dataclass(frozen=True)
class Piece:
    """One window of text number ``text``: its token ids, and their statistics from ``statistics.start`` on."""

    text: int
    ids: Sequence[int]
    statistics: TokenStatistics


def score_texts(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    window: int | None = None,
    overlap: int = 0,
    batch_tokens: int = 8192,
    chunk_tokens: int = 512,
) -> list[Piece]:
    """One teacher-forced pass over texts of any length. Every token but the first of a text is scored once.

    ``window``: the longest input; None: the model's context. ``overlap``: how many tokens of a window the next window
    sees again as context; 0 acts as 1. ValueError when no sequence has two tokens.
    """
    window = context_length(model) if window is None else window
    places = [(i, *p) for i, s in enumerate(sequences) if len(s) >= 2 for p in windows(len(s), window, overlap)]
    if not places:
        raise ValueError(f"none of the {len(sequences)} held-out sequences has two tokens: perplexity is not defined")
    ids = [sequences[i][begin:end] for i, begin, _, end in places]
    statistics = teacher_force(
        model,
        ids,
        starts=[first - begin for _, begin, first, _ in places],
        batch_tokens=batch_tokens,
        chunk_tokens=chunk_tokens,
    )
    return [Piece(place[0], part, found) for place, part, found in zip(places, ids, statistics, strict=True)]


def perplexity(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    window: int | None = None,
    overlap: int = 0,
    batch_tokens: int = 8192,
    chunk_tokens: int = 512,
) -> Perplexity:
    """Token-weighted perplexity of all sequences together. Arguments and errors are those of :func:`score_texts`."""
    return pooled(
        score_texts(
            model, sequences, window=window, overlap=overlap, batch_tokens=batch_tokens, chunk_tokens=chunk_tokens
        )
    )


def pooled(pieces: Sequence[Piece]) -> Perplexity:
    """The perplexity of scored texts together. Every token has the same weight."""
    return Perplexity(
        sum(p.statistics.nll for p in pieces), sum(len(p.statistics) - p.statistics.start for p in pieces)
    )


def windows(length: int, window: int | None, overlap: int = 0) -> list[tuple[int, int, int]]:
    """(begin, first scored, end) of every window over a text of ``length`` tokens.

    The scored ranges cover tokens 1 … length-1, each once. Example: length 8, window 4, overlap 2 -> (0, 1, 4),
    (2, 4, 6), (4, 6, 8).
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
