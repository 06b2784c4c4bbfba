"""Bootstrap confidence intervals: percentiles of the statistic over resampled passages.

Passages are the units that are drawn, so the interval speaks of other passages of the same kind, not of other training
seeds. This module knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def mean_intervals(
    values: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [Q] of the intervals of the column means of ``values`` [N, Q].

    All columns share the resamples: a draw of N passages is a row of multinomial counts, and its means one product.
    """
    size = values.shape[0]
    counts = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
    means = counts @ values.astype(np.float64) / size
    tail = (1 - level) / 2
    return np.quantile(means, tail, axis=0), np.quantile(means, 1 - tail, axis=0)


def two_sample_interval(
    first: np.ndarray,
    second: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of ``statistic(first, second)``, both samples resampled on their own."""
    draws = [
        statistic(rng.choice(first, len(first)), rng.choice(second, len(second))) for _ in range(resamples)
    ]  # fmt: skip
    tail = (1 - level) / 2
    return float(np.quantile(draws, tail)), float(np.quantile(draws, 1 - tail))
