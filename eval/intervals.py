"""Bootstrap confidence intervals: percentiles of the statistic over resampled passages.

Passages are resampled, so the interval covers other passages of the same kind, not other training seeds. When all
passages agree, the interval has no width, because every resample is the same. 0 of n then still allows a share of 3/n
(the rule of three, 95 %). This module knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_NUMBERS_AT_ONCE = 2**22


def mean_intervals(
    values: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [Q] of the intervals of the column means of ``values`` [N, Q].

    All columns share the resamples. A draw of N passages is a row of counts, and a matrix product gives its means.
    """
    means = resampled_sums(values, rng=rng, resamples=resamples) / values.shape[0]
    return ends(means, level=level)


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
