"""Controls: how often a scan would find what nobody can have memorised, and which findings any model would predict.

A control is a text of the corpus with its sentences shuffled or its entities swapped (:mod:`.altered`). It is *flagged*
if a run as long as a suffix goes over something new. The share of flagged controls, with its exact bound, is the scan's
false-positive rate. Each finding has controls of its own, too. This module knows texts, tokens and stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ..intervals import share_interval
from .altered import Altered, entities, shuffled, swapped
from .findings import Finding
from .passes import Layout
from .spans import longest, runs
from .store import Store

Encode = Callable[[str], tuple[Sequence[int], Sequence[int]]]
"""A text -> the ids of its tokens, and where each of them ends in it, in characters."""
Row = dict[str, Any]
SHUFFLED, SWAPPED = "shuffled", "swapped"
MOST_ENTITIES = 20_000  # of the pool that new ones are drawn from
ALIKE_WORDS = 8  # of a run that texts share; texts that share half of theirs or more are one text


@dataclass
class Trial:
    """A control that is measured: its pass, and the tokens (start, stop) of what is new, counted in the pass."""

    number: int
    places: list[tuple[int, int]]
    first: int


@dataclass
class Controls:
    """``sample``: controls of texts of the corpus, by kind and text; ``own``: those of each finding, by its place.

    ``without_own``: findings that come after the last one for which controls of its own were made.
    ``alone``: the pass of each finding that its context shows before, behind its prompt alone, by its place.
    """

    layout: Layout
    store: Store
    encode: Encode
    has_bos: bool
    sample: dict[str, dict[int, Trial]] = field(default_factory=dict)
    own: dict[int, dict[str, Trial]] = field(default_factory=dict)
    alone: dict[int, int] = field(default_factory=dict)
    without_own: int = 0

    def plan(self, texts: Sequence[str], findings: Sequence[Finding], *, count: int, most_own: int) -> None:
        """Add a control of each kind of the first ``count`` different texts, and of ``most_own`` different findings.

        They are measured when the store is finished.
        """
        pool = [text[a:b] for text in texts for a, b in entities(text)][:MOST_ENTITIES]
        for kind in (SHUFFLED, SWAPPED):
            made = ((place, self._trials(kind, text, pool, kind)) for place, text in enumerate(distinct(texts)))
            self.sample[kind] = dict(islice(((place, trials[0]) for place, trials in made if trials), count))
        known: dict[str, int] = {}
        for place, finding in enumerate(findings):
            if len(finding.again):
                first = max(finding.prompt_tokens, int(not self.has_bos))
                self.alone[place] = self.store.add(finding.again[: self.layout.length], first)
            whole = f"{finding.prompt}{finding.text}"
            if (first := known.setdefault(whole, place)) != place:
                if first in self.own:
                    self.own[place] = self.own[first]
                else:
                    self.without_own += 1
            elif len(known) <= most_own:
                made = {kind: self._trials(kind, whole, pool, kind) for kind in (SHUFFLED, SWAPPED)}
                self.own[place] = {kind: trials[0] for kind, trials in made.items() if trials}
            else:
                self.without_own += 1

    def _trials(self, kind: str, text: str, pool: Sequence[str], seed: str) -> list[Trial]:
        """The control of a text, or [] where it is too short to be one."""
        made = shuffled(text, seed) if kind == SHUFFLED else swapped(text, pool, seed)
        return [] if made is None else self._added(made)

    def _added(self, made: Altered) -> list[Trial]:
        ids, ends = self.encode(made.text)
        ids, first = list(ids)[: self.layout.length], int(not self.has_bos)
        begins, stops = np.array(made.places).T
        bounds = np.asarray(ends[: len(ids)])
        from_token = np.searchsorted(bounds, begins, side="right")
        to_token = np.searchsorted(bounds, stops, side="left") + 1
        tokens = zip(from_token.tolist(), to_token.tolist(), strict=True)
        places = [(a, b) for a, b in tokens if first <= a and b <= len(ids)]
        if len(ids) - first < self.layout.suffix or not places:
            return []
        return [Trial(self.store.add(ids, first), places, first)]

    def longest(self, trial: Trial) -> int:
        """The longest run of first choices that goes over all of something new, in tokens."""
        right = self.store.columns(trial.number).right
        found = [(a + trial.first, b + trial.first) for a, b in runs(right)]
        return max(
            (b - a for a, b in found if any(a <= start and stop <= b for start, stop in trial.places)), default=0
        )

    def rates(self) -> Row:
        """Of each kind and of all: controls, texts they are of, texts with a flagged one, their share, its interval.

        The controls of a text are alike: of all kinds together, a text counts once, by its longest run.
        """
        counted = {kind: {place: self.longest(t) for place, t in made.items()} for kind, made in self.sample.items()}
        texts: dict[int, int] = {}
        for found in counted.values():
            for place, run in found.items():
                texts[place] = max(run, texts.get(place, 0))
        rows = {kind: self._rate(list(found.values())) for kind, found in counted.items()}
        rows["all"] = self._rate(list(texts.values()))
        rows["all"]["controls"] = sum(map(len, counted.values()))
        return rows

    def _rate(self, found: Sequence[int]) -> Row:
        flagged = sum(run >= self.layout.suffix for run in found)
        rate: Row = {
            "controls": len(found), "texts": len(found), "flagged": flagged, "longest_run": max(found, default=0),
        }  # fmt: skip
        if found:
            low, high = share_interval(flagged, len(found))
            rate |= {"rate": flagged / len(found), "interval": [low, high]}
        return rate

    def of(self, place: int) -> Row:
        """The longest run of each own control of a finding; {} where none could be made."""
        return {kind: self.longest(trial) for kind, trial in self.own.get(place, {}).items()}

    def alone_run(self, place: int) -> int | None:
        """The longest run of first choices of a finding behind its prompt alone; None where its context is new."""
        number = self.alone.get(place)
        return None if number is None else longest(self.store.columns(number).right)


def reference_runs(store: Store, numbers: Sequence[tuple[int, int]]) -> list[int]:
    """The longest run of another model on each text. ``numbers``: its pass, and where the finding begins, in tokens.

    The prompt's tokens do not count.
    """
    found = []
    for number, begin in numbers:
        right = store.columns(number).right
        found.append(longest(right[begin:]))
    return found


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """The texts of which less than half of the runs of words stand in texts before them: copies say nothing new."""
    known: set[tuple[str, ...]] = set()
    for text in texts:
        words = text.split()
        runs = {tuple(words[i : i + ALIKE_WORDS]) for i in range(max(1, len(words) - ALIKE_WORDS + 1))}
        if 2 * len(runs & known) < len(runs):
            yield text
        known |= runs
