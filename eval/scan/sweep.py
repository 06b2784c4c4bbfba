"""A corpus goes through a model once: which passes each reading of each document has, and what was measured of them.

The corpus is read twice, because its text is not kept: once to measure, once to look at what was found. This module
knows readings and stores, nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ppo.io.visible import visible

from .measure import Columns
from .passes import Layout, Pass
from .protocols import Reading
from .store import Store


@dataclass(frozen=True)
class Layer:
    """Columns of every token of a reading, from passes side by side; False and nan where a token was not scored.

    ``starts`` int64 [n]: where the pass of a token begins.
    """

    right: np.ndarray
    ends: np.ndarray
    logprobs: np.ndarray
    top_k: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """``numbers``: of the passes of each reading, in the order of the readings."""

    layout: Layout
    store: Store
    has_bos: bool
    numbers: list[np.ndarray]

    def passes(self, place: int, reading: Reading) -> list[tuple[Pass, Columns]]:
        """The passes of the reading with this place in the order, and what was measured of them.

        ValueError for a reading that is not the one that was measured.
        """
        cut = passes_of(reading, self.layout, has_bos=self.has_bos)
        if place >= len(self.numbers) or len(cut) != len(self.numbers[place]):
            raise ValueError(f"{visible(reading.document.name)} has changed while it was scanned: start again")
        return [(p, self.store.columns(int(n))) for p, n in zip(cut, self.numbers[place], strict=True)]

    def layers(self, place: int, reading: Reading) -> Iterator[Layer]:
        """The layers of the reading with this place in the order."""
        found, size = self.passes(place, reading), len(reading.ids)
        for number in range(self.layout.layers):
            layer = Layer(
                np.zeros(size, dtype=bool), np.zeros(size, dtype=bool), np.full(size, np.nan, dtype=np.float32),
                np.full(size, np.nan, dtype=np.float32), np.zeros(size, dtype=np.int64),
            )  # fmt: skip
            for one, columns in found:
                if one.layer == number:
                    part = slice(one.first, one.stop)
                    layer.right[part], layer.ends[part] = columns.right, columns.ends
                    layer.logprobs[part], layer.top_k[part] = columns.logprobs, columns.top_k
                    layer.starts[part] = one.start
            if found:
                yield layer


def passes_of(reading: Reading, layout: Layout, *, has_bos: bool) -> list[Pass]:
    """The passes over a reading. Of a folded one, those in which folding changed something, and their neighbours.

    The others hold what the reading as it stands holds. With the neighbours, a span that leaves what is measured here
    overlaps with its like there.
    """
    cut = layout.passes(len(reading.ids), has_bos=has_bos)
    if not reading.is_folded:
        return cut
    changed = [bool(reading.num_changed[p.stop] > reading.num_changed[p.start]) for p in cut]
    near = [range(max(i % layout.layers, i - layout.layers), len(cut), layout.layers)[:3] for i in range(len(cut))]
    return [p for i, p in enumerate(cut) if any(changed[j] for j in near[i] if j <= i + layout.layers)]


def sweep(readings: Iterable[Reading], layout: Layout, store: Store, *, has_bos: bool) -> Sweep:
    """Measure all passes of all readings. What the store's folder holds already is not measured again."""
    numbers = []
    for reading in readings:
        cut = passes_of(reading, layout, has_bos=has_bos)
        found = [store.add(reading.ids[p.start : p.stop], p.first - p.start) for p in cut]
        numbers.append(np.array(found, dtype=np.int64))
    store.finish()
    return Sweep(layout, store, has_bos, numbers)
