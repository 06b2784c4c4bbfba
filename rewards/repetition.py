"""How much a token sequence repeats itself: distinct n-grams, repeated n-grams, loops.

Tokens may be ids, words or any other hashable values. This module knows nothing about samples or rewards.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All n-grams in order. Fewer than n tokens give none."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(tokens: Sequence[Hashable], n: int) -> float:
    """Number of distinct n-grams / number of n-grams, in [0, 1] (Li et al. 2016). Fewer than n tokens give 0."""
    grams = ngrams(tokens, n)
    return len(set(grams)) / len(grams) if grams else 0.0


def repeats(tokens: Sequence[Hashable], n: int) -> list[bool]:
    """For every token, whether the n-gram that ends with it occurred before. False for the first n-1 tokens.

    Example (n=2): a b a b c -> [F F F T F].
    """
    seen: set[tuple[Hashable, ...]] = set()
    flags = [False] * min(n - 1, len(tokens))
    for gram in ngrams(tokens, n):
        flags.append(gram in seen)
        seen.add(gram)
    return flags


def repeated_share(tokens: Sequence[Hashable], n: int) -> float:
    """Share of n-grams that occurred before, in [0, 1). It is 1 - distinct_n, or 0 when there is no n-gram."""
    count = len(tokens) - n + 1
    return sum(repeats(tokens, n)) / count if count > 0 else 0.0


def loop_share(tokens: Sequence[Hashable], *, max_period: int = 12, min_rounds: int = 3) -> float:
    """Share of the tokens that lie in the longest loop, in [0, 1].

    A loop of period p repeats the same p tokens at least ``min_rounds`` times in a row. Periods 1 … ``max_period`` are
    tried. Example: x a b a b a b -> 6/7.
    """
    longest = 0
    for period in range(1, min(max_period, len(tokens) // min_rounds) + 1):
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run >= period * (min_rounds - 1):
                longest = max(longest, run + period)
    return longest / len(tokens) if tokens else 0.0
