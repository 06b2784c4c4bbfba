"""Intervals of a verdict at the level at which all of them together hold at 95 % (Bonferroni).

A number comes with its interval of 95 %. For another level a share's is computed anew (Clopper and Pearson 1934): how
many of how many passages it is can be read off the two. The interval of another mean is stretched about its value, by
the quotient of Student's quantile at the level and the normal one at 95 %, and ends where the number cannot go on.
Differences are made of these (:func:`eval.intervals.difference_interval`), so that none leaves the possible range. This
module knows numbers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

from .intervals import difference_interval, share_interval

LEVEL = 0.95
MOST = 10_000
"""Of more passages a share is not told from another mean: its interval is as good as normal."""
_CLOSE = 1e-6


def joint_level(count: int) -> float:
    """The level of each of ``count`` intervals, so that all of them hold together at 95 %."""
    return 1 - (1 - LEVEL) / max(count, 1)


@dataclass(frozen=True)
class Known:
    """A mean over passages with its interval of 95 %.

    passages      how many passages it is of, at most; infinite where that is not known
    least, most   the ends of what it can be
    """

    value: float
    low: float
    high: float
    passages: float = math.inf
    least: float = 0.0
    most: float = 1.0

    def ends(self, level: float) -> tuple[float, float]:
        """The interval at another level."""
        counts = share_counts(self.value, (self.low, self.high), self.passages)
        if counts is not None:
            return share_interval(*counts, level=level)
        factor = t_quantile((1 + level) / 2, min(max(self.passages - 1, 1), 1e9)) / NormalDist().inv_cdf(
            (1 + LEVEL) / 2
        )
        low, high = (self.value + factor * (end - self.value) for end in (self.low, self.high))
        return min(self.value, max(self.least, low)), max(self.value, min(self.most, high))

    @classmethod
    def exactly(cls, value: float) -> Known:
        """A number that is given, not measured."""
        return cls(value, value, value)


def difference_ends(one: Known, other: Known, level: float) -> tuple[float, float]:
    """The interval of ``one`` less ``other`` at a level (Newcombe's hybrid). It stays within the possible range."""
    return difference_interval(one.value, one.ends(level), other.value, other.ends(level))


def share_counts(value: float, interval: Sequence[float], most: float) -> tuple[int, int] | None:
    """How many of how many passages, at most ``most``, a share is whose interval of 95 % is Clopper and Pearson's.

    None where no number of passages gives that interval: then it is not a share of passages.

    Example: 0.25 with (0.0318..., 0.6508...) and at most 32 -> 2 of 8.
    """
    if not 0 <= value <= 1 or not 1 <= most <= MOST:
        return None
    least = Fraction(value).limit_denominator(int(most)).denominator
    sizes = range(least, int(most) + 1, least)
    if abs(round(value * least) - value * least) > _CLOSE:
        return None
    if sizes[-1] == most and _is_close(share_interval(round(value * sizes[-1]), sizes[-1]), interval):
        return round(value * sizes[-1]), sizes[-1]  # the usual case

    def width(count: int) -> float:
        """It shrinks with the number of passages."""
        ends = share_interval(round(value * count), count)
        return ends[1] - ends[0]

    low, high = interval
    place = bisect_left(sizes, -(high - low + _CLOSE), key=lambda count: -width(count))
    for count in sizes[place : place + 1]:
        if _is_close(share_interval(round(value * count), count), interval):
            return round(value * count), count
    return None


def _is_close(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(abs(a - b) < _CLOSE for a, b in zip(found, wanted, strict=True))


def t_quantile(p: float, freedom: float) -> float:
    """The quantile of Student's t, from the normal one (Cornish-Fisher: Abramowitz and Stegun 26.7.5).

    Example: p = 0.975 with 10 degrees -> 2.228. With fewer than 3 it is too small.
    """
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
