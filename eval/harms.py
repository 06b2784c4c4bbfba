"""What a model lost while it forgot: of the records to keep, of held-out text, and of its writing.

In a broken model no memory can be read, so its numbers say nothing. Writing has a goal of its own; the rest is held
against the original model. Each finding is made at a level that is known once all of them are counted. This module
knows summaries and intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .intervals import share_interval
from .joint import Known, difference_ends, share_counts
from .margins import KEEP, NON_WORDS, PERPLEXITY, WRITING, WRITING_GOAL, Harm
from .verdict import Finding

Evaluated = Mapping[str, Any]
AtLevel = Callable[[float], Finding]


def known(evaluated: Evaluated, name: str, *, most: float = 1.0) -> Known | None:
    """A number of an evaluation with its interval; None where one of them is missing or not finite."""
    value, interval = evaluated["summary"].get(name), evaluated.get("intervals", {}).get(name)
    if value is None or interval is None or not all(map(math.isfinite, (value, *interval))):
        return None
    passages = evaluated["summary"].get(f"{name.partition('/')[0]}/passages", math.inf)
    return Known(float(value), *map(float, interval), passages=float(passages), most=most)


def harms(shown: Evaluated, original: Evaluated | None) -> dict[str, AtLevel | None]:
    """What the model lost, by what it is called; None where it was not measured. ``original``: may be unknown."""
    found = {"writing": _writing(shown), "held-out perplexity": _perplexity(shown, original)}
    if original is None:
        return {name: one for name, one in found.items() if one is not None} | {"what the model lost": None}
    return found | {"records to keep": _kept(shown, original), NON_WORDS.label: _non_words(shown, original)}


def _finding(harm: Harm, value: float, target: float, gap: float, ends: tuple[float, float] | None = None) -> Finding:
    low, high = ends or (None, None)
    return Finding(harm.label, harm.unit, value, target, math.inf if math.isnan(gap) else gap, harm.limit, low, high)


def _perplexity(shown: Evaluated, original: Evaluated | None) -> AtLevel | None:
    """As it stands: its interval is over texts, and the same texts are easy or hard for both models."""
    now = shown["summary"].get(PERPLEXITY.quantity)
    was = None if original is None else original["summary"].get(PERPLEXITY.quantity)
    if now is None or (math.isfinite(now) and not was):
        return None
    ratio = now / was if was else math.nan  # what is no number is broken, whatever it was
    return lambda _: _finding(PERPLEXITY, ratio, 1.0, ratio - 1)


def _kept(shown: Evaluated, original: Evaluated) -> AtLevel | None:
    """Of the records that came out before, the share that still does."""
    now, was = known(shown, KEEP.quantity), known(original, KEEP.quantity)
    if now is None or was is None or was.value <= 0:
        return None
    counts = [share_counts(k.value, (k.low, k.high), k.passages) for k in (now, was)]
    share = now.value / was.value

    def at(level: float) -> Finding:
        if counts[0] is not None and counts[1] is not None:
            few = min(counts[0][0], counts[1][0])  # new ones make up for others at most
            low, high = share_interval(few, counts[1][0], level=level)
            return _finding(KEEP, share, 1.0, 1 - share, (1 - high, 1 - low) if share <= 1 else None)
        low, high = difference_ends(was, now, level)
        return _finding(KEEP, share, 1.0, 1 - share, (low / was.value, high / was.value))

    return at


def _non_words(shown: Evaluated, original: Evaluated) -> AtLevel | None:
    """The share of words that are none, against the original's on never-trained passages."""
    now, usual = known(shown, NON_WORDS.quantity), known(original, "never/non_words")
    if now is None or usual is None:
        return None
    return lambda level: _finding(
        NON_WORDS, now.value, usual.value, now.value - usual.value, difference_ends(now, usual, level)
    )


def _writing(shown: Evaluated) -> AtLevel | None:
    value = shown["summary"].get(WRITING.quantity)
    if value is None:
        return None
    found = known(shown, WRITING.quantity)

    def at(level: float) -> Finding:
        if found is None:
            return _finding(WRITING, float(value), WRITING_GOAL, WRITING_GOAL - float(value))
        low, high = found.ends(level)
        return _finding(
            WRITING, found.value, WRITING_GOAL, WRITING_GOAL - found.value, (WRITING_GOAL - high, WRITING_GOAL - low)
        )

    return at
