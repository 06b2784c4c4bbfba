r"""Text with its white space folded, and where each character of it stands in the text as it is.

A text that was wrapped anew, set with typographic quotes or taken from a PDF differs from what a model was trained on
in signs that nobody reads. Folding makes runs of white space one space, and typographic quotes, hyphens and ligatures
plain. It leaves out signs without a width, white space around the text, and the marks of quotes and comments (``>``,
``#``, ``//``) in front of lines of which at least two in a row have the same one. This module knows strings.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

PLAIN = {
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'",
    "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u201f": '"', "\u2033": '"',
    "\u2010": "-", "\u2011": "-", "\u2026": "...",
    "\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl",
    "\u00ad": "", "\u200b": "", "\u2060": "", "\ufeff": "",
}  # fmt: skip
_UNSEEN = "".join(sign for sign, plain in PLAIN.items() if not plain)
_RUN = rf"[\s{_UNSEEN}]"
_CHANGED = re.compile(rf"\A{_RUN}+|{_RUN}+\Z|{_RUN}{{2,}}|[^\S ]|[{''.join(PLAIN)}]")
_WIDE = re.compile("[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")  # scripts without spaces


_MARK = re.compile(r"^[ \t]*((?:>[ \t]?)*>|#|//)(?:[ \t]+|$)", re.MULTILINE)


def _marks(text: str) -> list[tuple[int, int]]:
    """(start, end) of the marks in front of lines that a neighbouring line has, too."""
    found = [(m.start(), m.end(), m[1].replace(" ", "")) for m in _MARK.finditer(text)]
    is_next = [
        one[2] == other[2] and text.find("\n", one[1], other[0]) == other[0] - 1 for one, other in pairwise(found)
    ]
    near = zip([False, *is_next], [*is_next, False], strict=True)
    return [(start, end) for (start, end, _), either in zip(found, near, strict=False) if any(either)]


def folded(text: str) -> tuple[str, np.ndarray, np.ndarray]:
    """(folded text, begins, ends): each of its characters stands for ``text[begins[i]:ends[i]]``, int64.

    A mark in front of a line belongs to the white space before it. Example: in "a \\n b\\u2026" the result is "a b...",
    and the space stands for the characters 1 to 4.
    """
    marks = _marks(text)
    if not marks:
        return _folded(text)
    is_kept = np.ones(len(text), dtype=bool)
    for start, end in marks:
        is_kept[start:end] = False
    edges = [0, *(place for mark in marks for place in mark), len(text)]
    own = np.flatnonzero(is_kept)
    plain, begins, ends = _folded("".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)))
    last = np.append(own[1:], len(text)) if len(own) else own
    after = np.where([text[i] == "\n" for i in own.tolist()], last, own + 1)
    return plain, own[begins], after[ends - 1]


def _folded(text: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The same, but for marks in front of lines."""
    pieces: list[str] = []
    begins: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    last = 0

    def keep(start: int, end: int) -> None:
        if start < end:
            pieces.append(text[start:end])
            begins.append(np.arange(start, end))
            ends.append(np.arange(start + 1, end + 1))

    for found in _CHANGED.finditer(text):
        start, end = found.span()
        plain = _plain(text, start, end)
        keep(last, start)
        pieces.append(plain)
        begins.append(np.full(len(plain), start))
        ends.append(np.full(len(plain), end))
        last = end
    keep(last, len(text))
    empty = [np.zeros(0, dtype=np.int64)]
    return "".join(pieces), np.concatenate(begins or empty), np.concatenate(ends or empty)


def _plain(text: str, start: int, end: int) -> str:
    """What stands for a run of white space, or for one sign.

    Nothing stands for it at either end of the text, where a soft hyphen parts a word, and where a line ends between
    two signs of a script without spaces.
    """
    run = text[start:end]
    if not run[0].isspace() and run[0] not in _UNSEEN:
        return PLAIN[run]
    if start == 0 or end == len(text) or run[0] == "\u00ad" or not any(map(str.isspace, run)):
        return ""
    is_inside = "\n" in run and _WIDE.match(text[start - 1]) and _WIDE.match(text[end])
    return "" if is_inside else " "
