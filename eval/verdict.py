"""What a verdict is made of: numbers with their distances from a target, and what they say together.

A finding is

    beyond   farther from its target than the limit allows, and it is sure that it is off at all
    within   the whole interval is within the limit
    unsure   anything else

A model is *clean* if every number stands within its limit, as measured, and no interval holds half of what a model has
that knows every token. A number that stands beyond its limit without being sure makes the verdict *unknown*, and so
does depth that was not measured: wide intervals help nobody. This module knows no models and no words of a report.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from .margins import Unit

State = Literal["beyond", "within", "unsure"]
HALF = 0.5
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """A number, what it is held against, and how far it lies on the side of a memory or of a harm.

    gap, low, high  the distance and its interval; None where there is none
    limit           the largest distance that counts as none
    full            the distance of a model that knows every token; None for a harm
    is_graded       whether half of a memory gives half of ``full``: an AUC is at its end long before
    is_two_sided    whether a distance to the other side counts as well: to know less than of a stranger's passage
    is_off          whether it is sure that the distance is not 0; None: it is where the interval leaves 0 out
    """

    label: str
    unit: Unit
    value: float
    target: float
    gap: float
    limit: float
    low: float | None = None
    high: float | None = None
    full: float | None = None
    is_graded: bool = True
    is_two_sided: bool = False
    is_off: bool | None = None

    @property
    def is_less(self) -> bool:
        """Whether the number lies beyond its limit on the other side: the model knows less than of a stranger's."""
        return self.is_two_sided and self.gap < -self.limit - _ROUNDING

    @property
    def is_over(self) -> bool:
        """Whether the number, as measured, lies beyond its limit. A distance that is no number is a whole one."""
        return self.is_less or not self.gap <= self.limit + _ROUNDING

    @property
    def state(self) -> State:
        """Beyond, within or unsure. A number without an interval is judged as it stands."""
        if self.low is None or self.high is None or not math.isfinite(self.gap):
            return "beyond" if self.is_over else "within"
        if self.is_over:
            is_off = self.low > 0 or (self.is_less and self.high < 0) if self.is_off is None else self.is_off
            return "beyond" if is_off else "unsure"
        is_inside = self.high <= self.limit and (not self.is_two_sided or self.low >= -self.limit)
        return "within" if is_inside else "unsure"

    @property
    def left(self) -> float | None:
        """How much of a full memory is there, 0 to 1; None for a harm."""
        return None if not self.full else min(1.0, max(0.0, self.gap / self.full))

    @property
    def could_hide_half(self) -> bool:
        """Whether the interval holds half of a full memory."""
        return self.is_graded and bool(self.full) and (self.high is None or self.high >= HALF * (self.full or 0.0))


@dataclass(frozen=True)
class Verdict:
    """What was found in the forget set, what the model lost, and what was not measured."""

    traces: tuple[Finding, ...]
    harms: tuple[Finding, ...]
    missing: tuple[str, ...]
    is_deep: bool  # whether depth was measured

    @property
    def state(self) -> Literal["clean", "not clean", "unknown"]:
        if self.reasons:
            return "not clean"
        return "clean" if self.is_deep and not self.suspects and not self.hiding else "unknown"

    @property
    def reasons(self) -> list[Finding]:
        """What is beyond its limit."""
        return [f for f in (*self.traces, *self.harms) if f.state == "beyond"]

    @property
    def suspects(self) -> list[Finding]:
        """What stands beyond its limit, and may do so by chance."""
        return [f for f in (*self.traces, *self.harms) if f.is_over and f.state != "beyond"]

    @property
    def hiding(self) -> list[Finding]:
        """What is within its limit, and leaves room for half of a memory."""
        return [f for f in self.traces if f.could_hide_half and not f.is_over]

    @property
    def left(self) -> float | None:
        """How much of a full memory is left, 0 to 1: the mean over all traces; None where there is none."""
        shares = [f.left for f in self.traces if f.left is not None]
        return fmean(shares) if shares else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: each finding with its state."""
        parts = {"traces": self.traces, "harms": self.harms}
        found = {name: [asdict(f) | {"state": f.state} for f in some] for name, some in parts.items()}
        return {"state": self.state, "left": self.left, **found, "missing": list(self.missing)}
