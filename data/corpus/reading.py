"""A document as tokens that know which characters they hold: as it stands, and with its white space folded.

Text is encoded in long pieces, because a tokenizer takes hundreds of bytes for each character. A piece ends before a
line that begins with a letter, where the usual tokenizers part text anyway. Ids come from the model's own tokenizer and
include no special tokens. This module knows a tokenizer, no models and no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.corpus.document import Document
from data.corpus.folding import folded

PIECE_CHARACTERS = 2**18
_LINE = re.compile(r"\n(?=\S)")


@dataclass(frozen=True)
class Reading:
    """``ids``: of all tokens of a document, int32 [n]. Token i holds characters of ``text[begins[i]:ends[i]]``.

    ``ends`` never fall. A character can belong to several tokens: then they overlap. White space that a tokenizer or
    the folding leaves out belongs to the token after it; tokens of white space at the end of the document are left out.
    Offsets are those of the document's own text, in a folded reading, too. ``num_changed``, int32 [n + 1]: how many
    characters folding changed before each token; all 0 in a text as it stands.
    """

    document: Document
    is_folded: bool
    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    num_changed: np.ndarray

    def span(self, first: int, last: int) -> tuple[int, int]:
        """(start, end) of the characters that the tokens ``first`` to ``last - 1`` hold, alone and whole.

        A character that is shared with a token outside does not count. The span is empty, at its start, where no
        character is left.
        """
        start = int(self.ends[first - 1] if first else self.begins[0])
        end = int(self.ends[last - 1])
        if last < len(self.ids):
            end = min(end, int(self.begins[last]))
        return start, max(start, end)


def readings(document: Document, tokenizer: Any, *, with_folded: bool = True) -> Iterator[Reading]:
    """The document as it stands; then folded, if that makes a difference (:mod:`data.corpus.folding`).

    ValueError for a tokenizer without character offsets.
    """
    text = document.text
    ids, begins, ends = _encoded(text, tokenizer)
    yield _reading(document, ids, begins, ends, np.zeros(len(ids) + 1), is_folded=False)
    if not with_folded:
        return
    plain, source_begins, source_ends = folded(text)
    if plain and plain != text:
        ids, begins, ends = _encoded(plain, tokenizer)
        before = np.concatenate([[0], np.cumsum(_is_changed(text, plain, source_begins, source_ends))])
        num_changed = before[np.concatenate([[0], ends])]
        is_empty = begins == ends
        own_begins = source_begins[np.minimum(begins, len(plain) - 1)]
        own_ends = np.where(is_empty, own_begins, source_ends[ends - 1])
        yield _reading(document, ids, own_begins, own_ends, num_changed, is_folded=True)


def _is_changed(text: str, plain: str, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """bool: of every folded character, whether another stood there, or one before it was left out."""
    own, new = (np.frombuffer(t.encode("utf-32-le"), dtype=np.uint32) for t in (text, plain))
    is_changed = (ends - begins != 1) | (own[begins] != new)
    is_changed[1:] |= begins[1:] != ends[:-1]
    return is_changed


def _reading(
    document: Document,
    ids: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    num_changed: np.ndarray,
    *,
    is_folded: bool,
) -> Reading:
    ends = np.maximum.accumulate(ends) if len(ends) else ends
    begins = np.concatenate([begins[:1], np.minimum(begins[1:], ends[:-1])])
    n = int(np.searchsorted(begins, len(document.text.rstrip())))
    changed = np.maximum.accumulate(num_changed).astype(np.int32)
    return Reading(document, is_folded, ids[:n], begins[:n], ends[:n], changed[: n + 1])


def _encoded(text: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, begins, ends) of a text's tokens, with the tokenizer's own offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; use a fast tokenizer")
    ids: list[np.ndarray] = [np.zeros(0, dtype=np.int32)]
    offsets: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    start = 0
    while start < len(text):
        end = _piece_end(text, start)
        encoded = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids.append(np.array(encoded["input_ids"], dtype=np.int32))
        offsets.append(np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2) + start)
        start = end
    begins, ends = np.concatenate(offsets).T
    return np.concatenate(ids), begins, ends


def _piece_end(text: str, start: int) -> int:
    """Where a piece that begins at ``start`` ends: before a line, else before a space, else where it must."""
    limit = start + PIECE_CHARACTERS
    if limit >= len(text):
        return len(text)
    middle = start + PIECE_CHARACTERS // 2
    lines = [found.end() for found in _LINE.finditer(text, middle, limit)]
    if lines:
        return lines[-1]
    space = text.rfind(" ", middle, limit)
    while space > middle and text[space - 1].isspace():
        space -= 1
    return space if space > middle else limit
