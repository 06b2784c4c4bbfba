"""Whether a text holds a piece of others, however it is wrapped, quoted or written in capitals.

Letters and digits alone are compared, so line breaks, quotation marks and signs in front of lines do not hide a copy.
This module knows strings and readings.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .protocols import Reading

NEAR_SIGNS = 40  # letters and digits in a row that two texts share if one holds a piece of the other


class Near:
    """Texts to look for. A text with fewer than ``NEAR_SIGNS`` letters and digits is looked for whole."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._of_length: dict[int, np.ndarray] = {}
        found: dict[int, list[np.ndarray]] = {}
        for text in texts:
            signs = _signs(text)[0]
            if length := min(NEAR_SIGNS, len(signs)):
                found.setdefault(length, []).append(_hashes(signs, length))
        self._of_length = {length: np.unique(np.concatenate(hashes)) for length, hashes in found.items()}

    def places(self, text: str) -> np.ndarray:
        """Which characters of a text stand in such a piece, bool [characters]; signs between count, too."""
        signs, at = _signs(text)
        steps = np.zeros(len(text) + 1, dtype=np.int64)
        for length, known in self._of_length.items():
            if len(signs) < length:
                continue
            begins = np.flatnonzero(np.isin(_hashes(signs, length), known))
            np.add.at(steps, at[begins], 1)
            np.add.at(steps, at[begins + length - 1] + 1, -1)
        return np.cumsum(steps)[:-1] > 0

    def tokens(self, reading: Reading) -> np.ndarray:
        """Which tokens of a reading hold a character of such a piece, bool [n]."""
        before = np.concatenate([[0], np.cumsum(self.places(reading.document.text))])
        return np.asarray(before[reading.ends] > before[reading.begins])

    def holds(self, text: str) -> bool:
        """Whether such a piece stands in a text."""
        return bool(self.places(text).any())


def signs_of(text: str) -> str:
    """The letters and digits of a text in small letters."""
    return "".join(map(chr, _signs(text)[0].tolist()))


def _signs(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(codes of the letters and digits in small letters, uint64 [n]; their places in the text, int64 [n])."""
    pairs = [(ord(sign.lower()[0]), place) for place, sign in enumerate(text) if sign.isalnum()]
    codes, places = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(codes, dtype=np.uint64), np.array(places, dtype=np.int64)


def _hashes(signs: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit hash of every run of ``length`` signs, uint64 [n - length + 1]."""
    mixed = (signs + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    runs = np.full(len(signs) - length + 1, length, dtype=np.uint64)
    for offset in range(length):
        runs = runs * np.uint64(0x100000001B3) + mixed[offset : offset + len(runs)]
    return runs
