"""What is recited, as spans of tokens: a long run of first choices, grown to where recitation ends.

A *hit* is a run of first choices at least as long as a suffix. One wrong token in a memorised text does not end it: a
hit grows on both sides as an alignment does in BLAST (Altschul et al. 1990), a wrong token costing ``COST`` right ones,
to the place with the best balance, and gives up ``DROP`` below it. It never grows over a place where the model's first
choice is the end of a text: what it recites ends there. This module knows arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COST = 8  # right tokens that one wrong token outweighs; text that was never seen has more wrong ones than that
DROP = 16  # how far the balance may fall below its best


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` … ``stop`` of a text (exclusive), of which the first and the last one are right.

    ``run``: the longest run of right ones in it.
    """

    start: int
    stop: int
    run: int


def runs(right: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of True, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], right, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def longest(right: np.ndarray) -> int:
    """The length of the longest run of True."""
    return max((b - a for a, b in runs(right)), default=0)


def recited(right: np.ndarray, ends: np.ndarray, *, least: int) -> list[Span]:
    """The spans of a text's tokens, in order, apart from each other. ``least``: tokens of a hit.

    right  bool [N]: the token is the model's first choice; False where it was not scored
    ends   bool [N]: the first choice is the end of a text

    Example (least 3, letters right, dots wrong): ``xx.aaaabbbb.cccccccccccc`` -> one span from a to the last c.
    """
    found: list[Span] = []
    for start, stop in runs(right):
        if stop - start < least or (found and stop <= found[-1].stop):
            continue
        low = found[-1].stop if found else 0
        left = start - _grown(right[low:start][::-1], ends[low:start][::-1])
        last = stop + _grown(right[stop:], ends[stop:])
        found.append(Span(left, last, longest(right[left:last])))
    return found


def _grown(right: np.ndarray, ends: np.ndarray) -> int:
    """How many of the tokens that follow a hit, in the order of growth, belong to it."""
    balance = best = size = 0
    for number, (is_right, is_end) in enumerate(zip(right, ends, strict=True), start=1):
        if is_end:
            break
        balance += 1 if is_right else -COST
        if balance > best:
            best, size = balance, number
        elif balance < best - DROP:
            break
    return size


def trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """A span of characters without the white space at either end of it."""
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop
