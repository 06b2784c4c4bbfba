"""Weighted sums of measures, wrapped in guards: the reward that a trainer calls.

A *measure* maps every sample to one number, or to one number per response token (a dense measure). A *term* is a
measure with a name, a weight and a range. A :class:`Reward` adds up its terms. A response that breaks a guard gets the
worst score instead. This module knows nothing about what is measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ppo.types import Sample

from .guards import Guards

Values = Sequence[float] | Sequence[Sequence[float]]
Measure = Callable[[Sequence[Sample]], Values]


@dataclass(frozen=True)
class Term:
    """``weight`` x ``measure``. ``low`` and ``high`` bound the measure (its sum, when it is dense).

    The bounds decide the worst score.
    """

    name: str
    weight: float
    measure: Measure
    low: float = 0.0
    high: float = 1.0
    signature: str = ""

    @property
    def worst(self) -> float:
        """The lowest value that the weighted term can take."""
        return min(self.weight * self.low, self.weight * self.high)


@dataclass(frozen=True)
class Scored:
    """``values``: scores [B], or token rewards [B][T] when a term is dense. ``parts``: means for the log."""

    values: list[float] | list[list[float]]
    parts: dict[str, float]


@dataclass(frozen=True)
class Reward:
    """The sum of the terms, or the worst score for a response that breaks a guard.

    With ``worst=None`` the worst score is the lowest sum that the terms can reach. If any term is dense, the reward is
    dense: scores of the other terms go to the last token. A guarded response then gets the worst score at its last
    token and 0 at all others.
    """

    terms: tuple[Term, ...]
    guards: Guards | None = None
    worst: float | None = None

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"terms={names}: a reward needs at least one term, and each needs a name of its own")
        if not math.isfinite(self.worst_score):
            raise ValueError(
                f"the worst score is {self.worst_score}: give worst, or bound every term with low and high"
            )

    @property
    def worst_score(self) -> float:
        """The score of a guarded response."""
        return sum(term.worst for term in self.terms) if self.worst is None else self.worst

    @property
    def signature(self) -> str:
        """What exactly was rewarded, in one line."""
        terms = " + ".join(f"{t.weight:g}*{t.name}" + (f"[{t.signature}]" if t.signature else "") for t in self.terms)
        return terms if self.guards is None else f"{terms} ; {self.guards.signature}|worst:{self.worst_score:g}"

    def __call__(self, samples: Sequence[Sample]) -> list[float] | list[list[float]]:
        """Samples to scores [B] or token rewards [B][T]."""
        return self.score(samples).values

    def parts(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The mean of every term's measure (unweighted), and the share of guarded responses, in all and by reason."""
        return self.score(samples).parts

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Values and parts at once. ValueError for a measure of the wrong length or with a non-finite value."""
        measured = [checked(term, term.measure(samples), samples) for term in self.terms]
        reasons = self.guards.reasons(samples) if self.guards is not None else [None] * len(samples)
        is_dense = any(_is_dense(values) for values in measured)
        rows = [self._row([m[i] for m in measured], s, reasons[i], is_dense) for i, s in enumerate(samples)]
        parts = {t.name: _mean([_total(v) for v in m]) for t, m in zip(self.terms, measured, strict=True)}
        if self.guards is not None:
            parts["guarded"] = _mean([float(reason is not None) for reason in reasons])
            counts = Counter(reason for reason in reasons if reason is not None)
            parts.update({f"guarded_{reason}": count / len(samples) for reason, count in sorted(counts.items())})
        return Scored(rows if is_dense else [row[-1] for row in rows], parts)

    def _row(self, values: list, sample: Sample, reason: str | None, is_dense: bool) -> list[float]:
        """Token rewards of one sample, or a single number when no term is dense."""
        row = [0.0] * (len(sample.ids) if is_dense else 1)
        if not row:
            raise ValueError(
                f"the response to {sample.prompt[:40]!r} has no token, so a dense reward has no place to go"
            )
        if reason is not None:
            row[-1] = self.worst_score
            return row
        for term, value in zip(self.terms, values, strict=True):
            if isinstance(value, (int, float)):
                row[-1] += term.weight * value
            else:
                row = [r + term.weight * v for r, v in zip(row, value, strict=True)]
        return row


def checked(term: Term, values: Values, samples: Sequence[Sample]) -> Values:
    """The measure's values. ValueError when they do not fit the samples or are not finite."""
    if len(values) != len(samples):
        raise ValueError(f"term {term.name!r} gave {len(values)} values for {len(samples)} samples")
    for i, (value, sample) in enumerate(zip(values, samples, strict=True)):
        is_number = isinstance(value, (int, float))
        if not is_number and len(value) != len(sample.ids):
            raise ValueError(
                f"term {term.name!r} gave {len(value)} token values for the {len(sample.ids)} tokens of sample {i}"
            )
        if not all(map(math.isfinite, [value] if is_number else value)):
            raise ValueError(f"term {term.name!r} is not finite for sample {i}, response {sample.text[:40]!r}")
    return values


def _is_dense(values: Values) -> bool:
    return any(not isinstance(value, (int, float)) for value in values)


def _total(value: float | Sequence[float]) -> float:
    return float(value) if isinstance(value, (int, float)) else sum(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
