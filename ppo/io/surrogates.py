r"""Half characters: lone surrogates, which JSON can write (``"\ud800"``) and no file in UTF-8 can hold.

No tokenizer takes them, and no log can be written with them. So what a run reads is refused before any work, and what a
model's tokenizer makes of its ids gets U+FFFD in their place, with a warning that counts. This module knows strings and
JSON values, nothing about what they are for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LONE = re.compile("[\ud800-\udfff]")  # Python joins the two halves of a whole character
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def refuse_surrogates(value: Any, where: str) -> None:
    """Raise ValueError, in one line, for a string in a JSON value, its keys included, that holds half a character.

    ``where`` names the file and line, or the prompt. The error names the field that is nearest to the string.
    """
    for field, text in _strings(value):
        if found := _LONE.search(text):
            of = f" in {field!r:.60}" if field else ""
            raise ValueError(
                f"{where} holds {found[0]!r}{of}, half a character (a lone surrogate), which no file can hold: "
                "write the whole character, or leave it out"
            )


def refuse_written_surrogates(value: Any, source: str, where: str) -> None:
    """The same for what was read from ``source``, a JSON text in UTF-8. Without such an escape there is no search."""
    if _ESCAPED.search(source):
        refuse_surrogates(value, where)


def without_surrogates(text: str) -> str:
    """The text with U+FFFD in place of every half character."""
    return text if text.isascii() else _LONE.sub("\ufffd", text)


def readable(texts: Sequence[str], *, name: str) -> list[str]:
    """What a tokenizer decoded, with U+FFFD for half characters. A RuntimeWarning counts the texts that had any.

    ``name``: what the texts are, in the plural.
    """
    found = [without_surrogates(text) for text in texts]
    if changed := sum(new != old for new, old in zip(found, texts, strict=True)):
        warnings.warn(
            f"the tokenizer decodes {changed} of {len(texts)} {name} to half characters (lone surrogates): "
            "U+FFFD stands in their place",
            RuntimeWarning,
            stacklevel=4,
        )
    return found


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """(nearest key, string) of every string in a JSON value, keys included. No recursion: JSON may be deep."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        field, item = left.pop()
        if isinstance(item, str):
            if not item.isascii():
                yield field, item
        elif isinstance(item, Mapping):
            for key, inner in item.items():
                left += [(str(key), inner), (field, key)]
        elif isinstance(item, list | tuple):
            left += [(field, inner) for inner in item]
