"""Who beats whom: two methods, passage by passage, in everything that counts, and how sure that is.

Passages are drawn with replacement, the same ones for every method, so that what makes a passage hard for both cancels
out (a paired bootstrap). Trainings are drawn, too, where a method has several: with one, nothing is said of another.
The intervals of a pair of methods are so wide that all of them together hold at 95 % (Bonferroni). A share's interval
is at least as wide as that of the passages on which the two differ (Clopper and Pearson), for a bootstrap of none has
no width. A difference gets one of four words (``WORDS``), and only one beyond the margin (:mod:`eval.margins`) counts.

The target of a distance is the exact twin's value on the same passages, and where no twin was measured the same model's
own on never-trained passages. A distance counts in both directions. This module knows the numbers of points
(:mod:`eval.values`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from .intervals import difference_interval, draw_counts, share_interval
from .margins import COMPARED, Compared
from .values import OF, TEXTS, WRITTEN
from .writing import judged, nll_level, parts_of

Word = Literal["better", "worse", "same", "unsure"]
WORDS: Mapping[Word, str] = {
    "better": "better",
    "worse": "worse",
    "same": "no difference beyond the margin",
    "unsure": "cannot tell: the interval is wider than the margin",
}
RESAMPLES, LEVEL, SEED = 4000, 0.95, 0
Point = Mapping[str, Any]
Outcome = Literal["beats", "beaten", "mixed", "same", "unsure", "not measured"]


class Sample(NamedTuple):
    """A quantity of a method: its value, its draws [R], and each passage's mean over trainings [N]."""

    value: float
    draws: np.ndarray
    passages: np.ndarray


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another in a quantity, with its interval. Below 0 it is worse."""

    quantity: Compared
    one: float
    other: float
    gain: float
    low: float
    high: float

    @property
    def word(self) -> Word:
        """A difference counts if its interval leaves 0 out and it is as large as the margin.

        Without a difference the whole interval must lie within the margin.
        """
        margin = self.quantity.margin
        if abs(self.gain) >= margin and (self.low > 0 or self.high < 0):
            return "better" if self.gain > 0 else "worse"
        return "same" if -margin <= self.low and self.high <= margin else "unsure"


@dataclass(frozen=True)
class Duel:
    """All differences of a pair of methods, and the labels of what was not measured for both."""

    differences: tuple[Difference, ...]
    missing: tuple[str, ...]

    def said(self, word: Word) -> list[Difference]:
        """The differences of a word."""
        return [d for d in self.differences if d.word == word]

    @property
    def outcome(self) -> Outcome:
        """Beats: better in something and worse in nothing. Mixed: both. Same: no difference in anything."""
        if not self.differences:
            return "not measured"
        better, worse = bool(self.said("better")), bool(self.said("worse"))
        if better or worse:
            return "mixed" if better and worse else "beats" if better else "beaten"
        return "unsure" if self.said("unsure") or self.missing else "same"


@dataclass(frozen=True)
class Field:
    """The methods of one number of records: what they are held against, and the draws that all of them share.

    ``original``: its point. ``twins``: the points of the exact twin, none where it was not measured.
    """

    original: Point
    twins: Sequence[Point] = ()
    resamples: int = RESAMPLES
    _drawn: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def sample(self, points: Sequence[Point], quantity: Compared) -> Sample | None:
        """A quantity of a method from the points of its trainings; None where one of them lacks it."""
        if quantity.how == "perplexity":
            return self._perplexity(points)
        if quantity.how == "writing":
            return self._writing(points)
        group, _, name = quantity.name.partition("/")
        rows = self._rows(points, group, name)
        if rows is None:
            return None
        if quantity.how == "mean":
            values, draws = (_means(rows, w) for w in (np.ones((1, rows.shape[1])), self._weights(group)))
            return self._joined(points, values, draws, rows)
        return self._distance(points, group, name, rows)

    def _distance(self, points: Sequence[Point], group: str, name: str, rows: np.ndarray) -> Sample | None:
        twin = self._rows(self.twins, group, name) if self.twins else None
        if twin is not None:
            rows = rows - twin.mean(axis=0)
            values, draws = (_means(rows, w) for w in (np.ones((1, rows.shape[1])), self._weights(group)))
        else:
            never = self._rows(points, "never", name)
            if never is None:
                return None
            values = _means(rows, np.ones((1, rows.shape[1]))) - _means(never, np.ones((1, never.shape[1])))
            draws = _means(rows, self._weights(group)) - _means(never, self._weights("never"))
        return self._joined(points, abs(values), abs(draws), rows)

    def _perplexity(self, points: Sequence[Point]) -> Sample | None:
        """exp of the mean NLL of a token, over the original's on the same texts."""
        nll, tokens, before = (
            self._rows(some, TEXTS, name)
            for some, name in ((points, "nll"), (points, "tokens"), ([self.original], "nll"))
        )
        if nll is None or tokens is None or before is None:
            return None

        def ratio(weights: np.ndarray) -> np.ndarray:
            return np.exp(np.minimum(((nll - before) @ weights.T) / (tokens @ weights.T), 700.0))

        return self._joined(points, ratio(np.ones((1, nll.shape[1]))), ratio(self._weights(TEXTS)), nll)

    def _writing(self, points: Sequence[Point]) -> Sample | None:
        """The fluency of the tables: the smallest part of the writing, or the length if that is less, at most 1."""
        summary = self.original["summary"]
        columns = {name: self._rows(points, "forget", name) for name in WRITTEN}
        present = {name: rows for name, rows in columns.items() if rows is not None}
        if nll_level(summary) is None or not set(WRITTEN[:7]) <= set(present) or "output_nll" not in present:
            return None
        size = present["empty"].shape[1]
        values, draws = (_fluency(present, summary, w) for w in (np.ones((1, size)), self._weights("forget")))
        return self._joined(points, values, draws, present["empty"])

    def _rows(self, points: Sequence[Point], group: str, name: str) -> np.ndarray | None:
        """The values of each training [S, N], NaN for a passage that has none; None unless all are about the same."""
        known = self.original.get("values", {}).get(group)
        found = [point.get("values", {}).get(group, {}) for point in points]
        if known is None or any(f.get(OF) != known.get(OF) or name not in f for f in found):
            return None
        rows = np.array([f[name] for f in found], dtype=np.float64)
        return rows if rows.shape[1] == _size(known) and not np.isnan(rows).all() else None

    def _weights(self, group: str) -> np.ndarray:
        """How often each passage of a group occurs in each draw [R, N]."""
        if group not in self._drawn:
            size = _size(self.original["values"][group])
            rng = np.random.default_rng([SEED, *group.encode()])
            self._drawn[group] = draw_counts(np.arange(size), size, self.resamples, rng=rng).astype(np.float64)
        return self._drawn[group]

    def _joined(self, points: Sequence[Point], values: np.ndarray, draws: np.ndarray, rows: np.ndarray) -> Sample:
        """The mean over trainings: of the values [S, 1], and of the draws [S, R] with trainings drawn, too."""
        count = len(draws)
        weights = np.ones((self.resamples, 1))
        if count > 1:
            rng = np.random.default_rng([SEED, *_key(points).encode()])  # each method's own: trainings are no pairs
            weights = draw_counts(np.arange(count), count, self.resamples, rng=rng) / count
        return Sample(float(values.mean()), (draws.T * weights).sum(axis=1), rows.mean(axis=0))


def _size(columns: Mapping[str, Any]) -> int:
    return next(len(column) for name, column in columns.items() if name != OF)


def _means(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The means of rows [S, N] under weights [R, N], as [S, R], over the passages that have a value.

    A draw that holds none of them gets the mean of all.
    """
    is_there = ~np.isnan(rows)
    sums, counts = np.where(is_there, rows, 0.0) @ weights.T, is_there.astype(np.float64) @ weights.T
    overall = np.nanmean(rows, axis=1, keepdims=True)
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), overall)


def _fluency(columns: Mapping[str, np.ndarray], original: Mapping[str, float], weights: np.ndarray) -> np.ndarray:
    """The fluency of each training under each weighting [S, R]. ``columns``: [S, N] of ``WRITTEN``."""
    means = {name: _means(rows, weights) for name, rows in columns.items()}
    means["distinct_2_ratio"] = means["distinct_2"] / np.maximum(means["distinct_2_truth"], 1e-12)
    judgements: dict[str, list[list[float]]] = {}
    for seed in range(len(columns["empty"])):
        rows = [
            {n: None if math.isnan(columns[n][seed, i]) else columns[n][seed, i] for n in columns}
            for i in range(columns["empty"].shape[1])
        ]
        for name, shares in judged(rows, original).items():
            judgements.setdefault(name, []).append([math.nan if s is None else s for s in shares])
    for name, shares_of in judgements.items():
        array = np.array(shares_of)
        if not np.isnan(array).all(axis=1).any():
            means[name] = _means(array, weights)
    usual = original.get("never/length_ratio", 1.0)
    length = (
        means["length"] / np.maximum(means["length_truth"] * usual, 1e-12) if usual else np.ones_like(means["length"])
    )
    parts = [np.clip(part, 0.0, 1.0) for part in parts_of(means, original).values()]
    smallest: np.ndarray = np.minimum(np.minimum.reduce(parts), length)
    return smallest


@dataclass(frozen=True)
class Contest:
    """Who beats whom among the methods of a field. Each is measured once, however many others it is held against."""

    against: Field
    _samples: dict[str, list[Sample | None]] = field(default_factory=dict, repr=False)

    def duel(self, one: Sequence[Point], other: Sequence[Point]) -> Duel:
        """Two methods, each given by the points of its trainings, in all of ``COMPARED``."""
        pairs = list(zip(COMPARED, self._of(one), self._of(other), strict=True))
        both = [(q, a, b) for q, a, b in pairs if a is not None and b is not None]
        missing = tuple(q.label for q, a, b in pairs if a is None or b is None)
        level = 1 - (1 - LEVEL) / max(len(both), 1)
        return Duel(tuple(difference(q, a, b, level=level) for q, a, b in both), missing)

    def is_measured(self, points: Sequence[Point]) -> bool:
        """Whether the points hold the values of single passages."""
        return any(sample is not None for sample in self._of(points))

    def _of(self, points: Sequence[Point]) -> list[Sample | None]:
        key = _key(points)
        if key not in self._samples:
            self._samples[key] = [self.against.sample(points, q) for q in COMPARED]
        return self._samples[key]


def _key(points: Sequence[Point]) -> str:
    """A method at a value of its knob."""
    return f"{points[0].get('method')} {points[0].get('value')}"


def difference(quantity: Compared, one: Sample, other: Sample, *, level: float) -> Difference:
    """How much better ``one`` is, with the interval of ``level``."""
    sign = 1.0 if quantity.is_higher else -1.0
    gain, draws = sign * (one.value - other.value) + 0.0, sign * (one.draws - other.draws)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    if quantity.is_share:
        gains = sign * (one.passages - other.passages)
        gains = gains[~np.isnan(gains)]
        least, most = _unseen(int((gains > 0).sum()), int((gains < 0).sum()), len(gains), level)
        low, high = min(low, gain + least), max(high, gain + most)
    return Difference(quantity, one.value, other.value, gain, float(low), float(high))


def _unseen(better: int, worse: int, count: int, level: float) -> tuple[float, float]:
    """How far the ends of a paired difference of shares lie from it, from the passages on which two methods differ."""
    shares = [(k / count, share_interval(k, count, level=level)) for k in (better, worse)]
    (up, up_ends), (down, down_ends) = shares
    low, high = difference_interval(up, up_ends, down, down_ends)
    return low - (up - down), high - (up - down)
