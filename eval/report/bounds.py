"""How much of a text, and how many of a kind, a page shows. What is left out is counted and said on the page.

A passage may have millions of characters, and a stranger's folder any number of passages, groups and names. A page
stays one that a browser opens. This module knows texts and HTML, nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ppo.io.visible import as_html

MOST_CHARACTERS = 20_000  # of one text of a passage: its prompt, its truth, an output
MOST_NAME = 200  # characters of an id, a kind, the name of a group
MOST_VALUE = 2000  # characters of a setting, a definition, a signature
MOST_PASSAGES = 2000  # cards
MOST_CARD_SIGNS = 32_000_000  # of all cards of a page, as HTML
MOST_SAMPLES = 100  # of the newest step
MOST_GROUPS = 40
MOST_FACTS = 500  # settings, definitions or signatures in one list
MOST_POINTS = 500  # of a curve
Item = TypeVar("Item")


def cut(text: str, most: int = MOST_NAME) -> str:
    """The first ``most`` characters. If there are more, their number follows: "abc… 4,812,330 more characters"."""
    return text if len(text) <= most else f"{text[:most]}{_more(len(text) - most)}"


def cut_html(text: str, most: int = MOST_CHARACTERS) -> str:
    """The same as HTML: the text escaped, and the number set apart."""
    return as_html(text[:most]) + note(len(text) - most)


def cut_front_html(text: str, most: int = MOST_CHARACTERS) -> str:
    """The last ``most`` characters as HTML: of a prompt, whose end is what the output continues."""
    left_out = len(text) - most
    return (
        f'<span class="cut">{left_out:,} characters before …</span> {as_html(text[-most:])}'
        if left_out > 0
        else as_html(text)
    )


def note(left_out: int) -> str:
    """How many characters are not shown, as HTML; "" for none."""
    return f'<span class="cut">{_more(left_out)}</span>' if left_out > 0 else ""


def spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most ``most`` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _more(left_out: int) -> str:
    return f"… {left_out:,} more characters"
