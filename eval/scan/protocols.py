"""What the scan needs of a corpus: texts that know their files and lines, and their tokens that know their characters.

``data/corpus`` makes such objects. Any object with these attributes will do.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Document(Protocol):
    """A text of a file. ``path`` names the file, ``name`` the text: the path, or path and record. Lines count from 1.

    ``is_start``: whether nothing stands before the text in its file.
    """

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def is_start(self) -> bool: ...
    def line_of(self, offset: int) -> int: ...


class Reading(Protocol):
    """A document as tokens: ``ids`` [n]. ``is_folded``: its white space was made single spaces before.

    ``begins``, ``ends`` [n]: the characters that each token holds some of; neither of them falls. ``num_changed``
    [n + 1]: how many characters were changed before each token.
    ``span(first, last)``: (start, end) of the characters that the tokens ``first`` to ``last - 1`` hold, alone and
    whole, in the document's own text.
    """

    @property
    def document(self) -> Document: ...
    @property
    def is_folded(self) -> bool: ...
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def begins(self) -> np.ndarray: ...
    @property
    def ends(self) -> np.ndarray: ...
    @property
    def num_changed(self) -> np.ndarray: ...
    def span(self, first: int, last: int) -> tuple[int, int]: ...


class Mark(Protocol):
    """Something personal in a text: what it is, and where, in characters."""

    @property
    def kind(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


def tokens_at(reading: Reading, start: int, stop: int) -> slice:
    """The tokens of a reading that hold any of the characters ``start`` to ``stop`` - 1."""
    first = int(np.searchsorted(reading.ends, start, side="right"))
    return slice(first, max(first, int(np.searchsorted(reading.begins, stop, side="left"))))
