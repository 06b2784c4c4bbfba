"""What the scan needs of a corpus: texts that know their files and lines, and their tokens that know their characters.

``data/corpus`` makes such objects. Any object with these attributes will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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

    ``span(first, last)``: (start, end) of the characters that the tokens ``first`` to ``last - 1`` hold, alone and
    whole, in the document's own text.
    """

    @property
    def document(self) -> Document: ...
    @property
    def is_folded(self) -> bool: ...
    @property
    def ids(self) -> np.ndarray: ...
    def span(self, first: int, last: int) -> tuple[int, int]: ...


class Tokenize(Protocol):
    """The part of a tokenizer that turns text into ids."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any: ...


class Mark(Protocol):
    """Something personal in a text: what it is, and where, in characters."""

    @property
    def kind(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


def ids_of(tokenize: Tokenize, text: str) -> Sequence[int]:
    """Token ids of a text without special tokens."""
    return list(tokenize(text, add_special_tokens=False)["input_ids"])
