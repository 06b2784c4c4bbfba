"""What can be predicted without a memory: by compression of the text before, and by short runs of the corpus itself.

Two scores of a text, both without any model. *zlib*: the bits a character that the text adds to its prompt when both
are compressed; rows of numbers and repeated lines add little. *n-gram*: the mean probability of its tokens by what
follows the same three tokens elsewhere in the corpus; the blanks of a form are unlikely, its template is not. Copies of
the text do not count as elsewhere: an occurrence inside the same run of 16 tokens is left out. This module knows texts
and token ids.
"""

from __future__ import annotations

import zlib

import numpy as np

ORDER, COPY = 4, 16  # tokens of a short run; of a run that is a copy
_SLOTS = 2**22  # counters; more different runs than that share some, which makes a text more predictable, not less


def added_bits(prompt: str, text: str) -> float:
    """Bits a character that ``text`` adds to ``prompt`` under zlib; 0 for an empty text. English adds 3 to 5."""
    before, whole = (len(zlib.compress(t.encode("utf-8", "replace"), 9)) for t in (prompt, prompt + text))
    return 8 * max(0, whole - before) / len(text) if text else 0.0


class Runs:
    """How often runs of tokens stand in a corpus, counted in a table of fixed size. Its numbers may be too high."""

    def __init__(self, slots: int = _SLOTS) -> None:
        self._counts = {size: np.zeros(slots, dtype=np.int32) for size in (ORDER - 1, ORDER, COPY - 1, COPY)}

    def add(self, ids: np.ndarray) -> None:
        """Count the runs of a text's tokens."""
        for size, counts in self._counts.items():
            np.add.at(counts, self._slots(ids, size), 1)

    def predictability(self, ids: np.ndarray, start: int) -> float:
        """The mean probability of the tokens from ``start`` on by what follows the tokens before them elsewhere.

        Only tokens with ``COPY`` - 1 before them are asked, because only their copies are known; 0 where there are
        none.
        """
        size = len(ids) - COPY + 1  # places of runs that end at token COPY - 1, COPY, …
        if size < 1:
            return 0.0
        counts = {length: self._counts[length][self._slots(ids, length)] for length in self._counts}
        run = counts[ORDER][-size:] - counts[COPY]
        context = counts[ORDER - 1][-size - 1 : -1] - counts[COPY - 1][:size]
        chances = np.where(context > 0, np.minimum(run / np.maximum(context, 1), 1.0), 0.0)
        asked = chances[max(0, start - COPY + 1) :]
        return float(asked.mean()) if len(asked) else 0.0

    def copies(self, ids: np.ndarray) -> int:
        """How often a text stands in the corpus, itself included: the median over its runs of ``COPY`` tokens."""
        found = self._counts[COPY][self._slots(ids, COPY)]
        return int(np.median(found)) if len(found) else 1

    def _slots(self, ids: np.ndarray, size: int) -> np.ndarray:
        """The counter of every run of ``size`` tokens, int64."""
        mixed = (np.asarray(ids).astype(np.uint64) + np.uint64(size)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        runs = np.zeros(max(0, len(ids) - size + 1), dtype=np.uint64)
        for offset in range(size):
            runs = runs * np.uint64(0x100000001B3) + mixed[offset : offset + len(runs)]
        runs ^= runs >> np.uint64(32)
        return (runs % np.uint64(len(self._counts[ORDER]))).astype(np.int64)
