"""How numbers and tokens are laid out in columns of text: lines, cells, and a token as one visible word."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from ..io.visible import code, visible

WIDTH = 100
_MOST_PASSES = 6  # epochs with a column; if there are more, the first and the last ones
_MOST_SIGNS = 200  # of a token: a stranger's tokenizer may write any number
MARKS = {"": " ", "above": "^", "below": "v"}
_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥"}


def token_label(text: str, token: int) -> str:
    """A token as one visible word. Spaces and line ends become signs, what acts or hides becomes its code
    (:func:`ppo.io.visible.visible`), and an empty text becomes the token's id. A very long text is cut.
    """
    words = visible(cut_token(text), lines=True)
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else code(c)) for c in words) or f"#{token}"


def cut_token(text: str) -> str:
    """A token's text, or the start of a very long one and how many characters are left out."""
    return text if len(text) <= _MOST_SIGNS else f"{text[:_MOST_SIGNS]}… {len(text) - _MOST_SIGNS:,} more characters "


def passes_shown(count: int) -> list[int]:
    """The visits (indices into a token's updates) that have a column."""
    half = _MOST_PASSES // 2
    return list(range(count)) if count <= _MOST_PASSES else [*range(half), *range(count - half, count)]


def line(t: str, token: str, cells: Sequence[str]) -> str:
    """A line of a table: a place, a token, its cells."""
    return " ".join([t, left(token, 10), *cells]).rstrip()


def number(x: float | None, width: int) -> str:
    """A number with as many decimals as fit, at most four."""
    if x is None:
        return " " * width
    for decimals in (4, 3, 2, 1, 0):
        text = f"{x:.{decimals}f}"
        if len(text) <= width:
            return text.rjust(width)
    return f"{x:.0e}".rjust(width)


def left(text: str, columns: int) -> str:
    """A text cut or padded to the given number of columns."""
    kept, used = "", 0
    for letter in text:
        used += columns_of(letter)
        if used > columns:
            return left(kept[:-1], columns - 1) + "…"
        kept += letter
    return kept + " " * (columns - used)


def right(text: str, columns: int) -> str:
    """A text padded on the left to the given number of columns."""
    return " " * (columns - sum(map(columns_of, text))) + text


def columns_of(letter: str) -> int:
    """How many columns a letter takes: 0, 1 or 2."""
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def wrap(text: str) -> str:
    """A paragraph in lines of at most ``WIDTH`` columns."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")
