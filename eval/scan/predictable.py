"""What can be predicted without a memory: by compression of the text before, and by short runs of the corpus itself.

Two scores of a text, both without any model. *zlib*: the bits a character that the text adds to its prompt when both
are compressed; rows of numbers and repeated lines add little. *n-gram*: the mean probability of its tokens by what
follows the same three tokens elsewhere in the corpus; the blanks of a form are unlikely, its template is not. An
occurrence inside the same run of 16 tokens is left out as a copy. A secret that is quoted with other line breaks scores
as a form does, so this score marks a text and clears none. This module knows texts and token ids.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from .copied import COPY, hashes

ORDER = 4  # tokens of a short run


def added_bits(prompt: str, text: str) -> float:
    """Bits a character that ``text`` adds to ``prompt`` under zlib; 0 for an empty text. English adds 3 to 5."""
    before, whole = (len(zlib.compress(t.encode("utf-8", "replace"), 9)) for t in (prompt, prompt + text))
    return 8 * max(0, whole - before) / len(text) if text else 0.0


class Runs:
    """How often the short runs of given texts stand in a corpus, counted exactly. ``texts``: their token ids."""

    def __init__(self, texts: Sequence[np.ndarray]) -> None:
        empty = [np.zeros(0, dtype=np.uint64)]
        self._known = {
            size: np.unique(np.concatenate([hashes(ids, size) for ids in texts] or empty))
            for size in (ORDER - 1, ORDER, COPY - 1, COPY)
        }
        self._counts = {size: np.zeros(len(known), dtype=np.int64) for size, known in self._known.items()}

    def add(self, ids: np.ndarray) -> None:
        """Count the runs of a text of the corpus."""
        for size, counts in self._counts.items():
            places, is_known = self._places(ids, size)
            np.add.at(counts, places[is_known], 1)

    def predictability(self, ids: np.ndarray, start: int) -> float:
        """The mean probability of the tokens from ``start`` on by what follows the tokens before them elsewhere.

        It is between 0 and 1. Only tokens with ``COPY`` - 1 before them are asked, because only their copies are known;
        0 where there are none.
        """
        size = len(ids) - COPY + 1  # places of runs that end at token COPY - 1, COPY, …
        if size < 1:
            return 0.0
        counts = {length: self._of(ids, length) for length in self._counts}
        run = counts[ORDER][-size:] - counts[COPY]
        context = counts[ORDER - 1][-size - 1 : -1] - counts[COPY - 1][:size]
        asked = (run / np.maximum(context, 1))[max(0, start - COPY + 1) :]
        return float(asked.mean()) if len(asked) else 0.0

    def copies(self, ids: np.ndarray) -> int:
        """How often a text stands in the corpus, itself included: the median over its runs of ``COPY`` tokens."""
        found = self._of(ids, COPY)
        return int(np.median(found)) if len(found) else 1

    def _of(self, ids: np.ndarray, size: int) -> np.ndarray:
        """How often each run of ``size`` tokens of a given text was counted, int64."""
        places, is_known = self._places(ids, size)
        if not is_known.all():
            raise ValueError("these tokens are of no text that is counted")
        return self._counts[size][places]

    def _places(self, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(place of every run among the known ones, whether it is one of them)."""
        found, known = hashes(ids, size), self._known[size]
        if not len(known):
            return np.zeros(len(found), dtype=np.int64), np.zeros(len(found), dtype=bool)
        places = np.minimum(np.searchsorted(known, found), len(known) - 1)
        return places, known[places] == found
