"""95 % intervals: exact ones for shares, percentiles over resampled passages for every other mean.

Passages are the unit, so an interval covers other passages of the same kind, not other training seeds.

A *share* is the mean of a number that is 0 or 1 for each passage. Its interval is Clopper and Pearson's (1934): it
covers the true share with at least the stated probability, whatever the share and the number of passages. The bootstrap
does not: with 32 passages and a true share of 1 % it covers 27 %, because it gives [0, 0] wherever no passage counts.
Wilson's interval is shorter, and covers 84 % to 88 % where it is worst (10 to 64 passages). The interval of a
difference is Newcombe's (1998). This module knows arrays only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

_NUMBERS_AT_ONCE = 2**22


@lru_cache(maxsize=4096)
def share_interval(successes: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share: ``successes`` of ``count`` (Clopper and Pearson 1934).

    Its low end is the share under which as many successes or more have the probability (1 - level) / 2, and the high
    end that under which as many or fewer have it. ValueError for counts that cannot be.

    Example: 0 of 32 -> (0, 0.109); 3 of 32 -> (0.020, 0.250).
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} successes of {count}: give a count of at least 1, and no more successes")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else _share_with_tail(successes - 1, count, 1 - tail)
    high = 1.0 if successes == count else _share_with_tail(successes, count, tail)
    return low, high


def _share_with_tail(most: int, count: int, probability: float) -> float:
    """The share p at which Binomial(count, p) is at most ``most`` with the given probability, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(most, count, middle) > probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _at_most(most: int, count: int, p: float) -> float:
    """P(X <= most) of X ~ Binomial(count, p), for p in (0, 1)."""
    k = np.arange(most + 1)
    ways = math.lgamma(count + 1) - np.array([math.lgamma(i + 1) + math.lgamma(count - i + 1) for i in k.tolist()])
    return float(np.exp(ways + k * math.log(p) + (count - k) * math.log1p(-p)).sum())


def difference_interval(
    one: float, one_interval: Sequence[float], other: float, other_interval: Sequence[float]
) -> tuple[float, float]:
    """The interval of ``one`` less ``other``, two means of independent passages, from their own intervals.

    Each end takes the distance of the two values to the ends that pull the difference that way, squared, summed, under
    the root (Newcombe 1998, method 10, with any intervals of the two).
    """
    low = math.hypot(one - one_interval[0], other_interval[1] - other)
    high = math.hypot(one_interval[1] - one, other - other_interval[0])
    return one - other - low, one - other + high


def mean_intervals(
    values: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    is_share: Sequence[bool] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [Q] of the intervals of the column means of ``values`` [N, Q].

    ``is_share``: the columns that hold 0 or 1 for each passage; None: none. They get :func:`share_interval`, the others
    the bootstrap. All columns share the resamples. A draw of N passages is a row of counts, and a matrix product gives
    its means. ValueError for a share with another value than 0 or 1.
    """
    means = resampled_sums(values, rng=rng, resamples=resamples) / values.shape[0]
    low, high = ends(means, level=level)
    for column in np.flatnonzero(np.array(is_share if is_share is not None else [], dtype=bool)):
        if not np.isin(values[:, column], (0, 1)).all():
            raise ValueError(f"column {column} holds {values[:, column]!r:.60}: a share needs 0 or 1 for each passage")
        low[column], high[column] = share_interval(int(values[:, column].sum()), len(values), level=level)
    return low, high


def resampled_sums(values: np.ndarray, *, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Column sums of ``values`` [N, Q] over ``resamples`` draws of N rows with replacement, float64 [R, Q].

    Statistics that are functions of sums (ratios, perplexity, corpus BLEU) get their intervals from these.
    """
    size = values.shape[0]
    parts = []
    for rows in _row_parts(resamples, size):
        parts.append(draw_counts(np.arange(size), size, rows, rng=rng) @ values.astype(np.float64))
    return np.concatenate(parts)


def draw_counts(labels: np.ndarray, num_labels: int, resamples: int, *, rng: np.random.Generator) -> np.ndarray:
    """How often each label occurs when ``labels`` int [N] are drawn N times with replacement, int64 [R, L]."""
    drawn = labels[rng.integers(len(labels), size=(resamples, len(labels)))]
    drawn = drawn + num_labels * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * num_labels).reshape(resamples, num_labels)


def ends(draws: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper percentiles of ``draws`` [R, …] over its first axis."""
    tail = (1 - level) / 2
    return np.quantile(draws, tail, axis=0), np.quantile(draws, 1 - tail, axis=0)


def sums_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> list[float]:
    """[low, high] of a statistic of the column sums of ``values`` [N, Q].

    ``statistic`` maps sums [R, Q] to numbers [R]. Example: the ratio of two columns is
    ``lambda sums: sums[:, 0] / sums[:, 1]``.
    """
    low, high = ends(statistic(resampled_sums(values, rng=rng, resamples=resamples)), level=level)
    return [float(low), float(high)]


def _row_parts(resamples: int, size: int) -> list[int]:
    """How many resamples to draw at a time, so that their counts stay small."""
    most = max(1, _NUMBERS_AT_ONCE // size)
    return [min(most, resamples - done) for done in range(0, resamples, most)]
