r"""Text from outside as it may be shown: what acts on a terminal or a page, or is drawn as nothing, becomes its code.

A terminal obeys control characters and escape sequences. Terminals and pages obey signs that reverse the order of
letters. Zero-width signs, fillers and tags hide words. A reader must see that they are there, so a terminal and a
Markdown file get Python's escapes (``\x1b``, ``\u202e``) and a page gets a marked code (U+202E). Letters of every
script stay, Arabic and Hebrew included. This module knows signs, no files and no models.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape

BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters and signs that are drawn as nothing: joiners and fillers of Hangul and Khmer, the empty braille cell."""
JOINERS = "\u200c\u200d"
"""Invisible, yet needed between letters of Persian and of Indic scripts, and between the parts of an emoji."""
_SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"  # choose a shape of the sign before
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: C0, DEL, C1
    "\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"  # format, direction, separators
    f"{BLANKS}{_SELECTORS}\ud800-\udfff"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # the last: tags
)
_SELECTOR = re.compile(f"[{_SELECTORS}]")
_NAMELESS = {"Cc": "control character", "Cs": "half a character"}
_FIRST_JOINED = "\u0590"  # no script below needs a joiner: Latin, Greek, Cyrillic, Armenian


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with escapes in place of signs that act or hide, such as ``\x1b`` and ``\u202e``.

    ``lines``: line feeds and tabs stay. A joiner stays between two signs of scripts that need it, a variation selector
    behind a sign that it can belong to. A text that was shown once stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return _HIDDEN.sub(lambda found: found[0] if _stays(found, lines=lines) else code(found[0]), text)


def code(sign: str) -> str:
    r"""Python's escape of a sign: ``\x1b``, ``\u202e``, ``\U000e0041``."""
    number = ord(sign)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def as_html(text: str) -> str:
    """The text escaped for HTML, with a marked code, such as U+202E, for each sign that acts or hides.

    Lines and tabs stay. The code is a ``<span class="sign">`` whose title is the sign's name. For an attribute, take
    :func:`as_attribute`.
    """
    pieces, last = [], 0
    for found in _HIDDEN.finditer(text):
        if not _stays(found, lines=True):
            name = unicodedata.name(found[0], _NAMELESS.get(unicodedata.category(found[0]), "unnamed"))
            mark = f'<span class="sign" title="{name.lower()}">U+{ord(found[0]):04X}</span>'
            pieces += [escape(text[last : found.start()]), mark]
            last = found.end()
    return "".join([*pieces, escape(text[last:])])


def as_attribute(text: str) -> str:
    """The text as an attribute in quotes, or as an element that holds text alone, such as a title."""
    return escape(visible(text))


def code_span(text: str) -> str:
    """The text as a code span of Markdown, in one line, whatever backticks it holds."""
    line = visible(" ".join(text.split()))
    longest = max((len(ticks) for ticks in re.findall("`+", line)), default=0)
    ticks, space = "`" * (longest + 1), " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def table_cell(text: str) -> str:
    """The text as a cell of a Markdown table: in one line, and no sign in it ends the cell or begins an element."""
    line = visible(" ".join(text.split()))
    for sign, written in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;")):
        line = line.replace(sign, written)
    return line


def _stays(found: re.Match[str], *, lines: bool) -> bool:
    """Whether a sign that could act or hide is at home where it stands."""
    sign, text = found[0], found.string
    before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    if sign in "\n\t":
        return lines
    if not before:
        return False
    is_drawn = not _HIDDEN.match(before)
    if sign in JOINERS:
        parts = is_drawn or bool(_SELECTOR.match(before)), bool(after) and not _HIDDEN.match(after)
        return all(parts) and min(before, after) >= _FIRST_JOINED
    is_letter = before.isascii() and before.isalpha()
    return bool(_SELECTOR.match(sign)) and is_drawn and not before.isspace() and not is_letter
