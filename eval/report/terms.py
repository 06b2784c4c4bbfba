"""What the words of the page mean, and how a reader gets at it: by mouse, by keyboard and by finger.

A label is a button with ``data-def``; whatever else carries ``data-def`` shows its definition where it is pointed at or
touched. The script takes the text from the list of definitions at the end of the page, so each stands there once, and a
reader without scripts, or on paper, has it too. This module knows words, no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from .rows import GLOBAL_ROWS, rows_for

OWN = {
    "interval": (
        "95 % interval",
        "Percentiles over bootstrap samples of the passages: what other passages of the same kind would give, not what "
        "another training would. Where all passages agree it has no width: 0 of n still allows a share of 3/n, "
        "and n of n one of 1 - 3/n.",
    ),
    "perplexity_ratio": (
        "Held-out perplexity, ratio",
        "Perplexity of held-out text after unlearning over that before: 1.03 is 3 % worse.",
    ),
    "floor": (
        "Chance floor",
        "BLEU that the model before reaches on passages it was never trained on: below it lies damage, not privacy.",
    ),
    "match": (
        "Marked words",
        "Words of the output that also stand in the true suffix, in the same order: the longest common run, then the "
        "longest ones to its left and right, and so on. Runs of signs alone do not count.",
    ),
    "output_tokens": (
        "Tokens",
        "Tokens of the greedy output, cut to the suffix's length, over tokens of the true suffix.",
    ),
}


@dataclass(frozen=True)
class Terms:
    """``known``: name -> (label, definition)."""

    known: Mapping[str, tuple[str, str]]

    def label(self, text: str, name: str) -> str:
        """The text as a button that shows the definition; plain text where there is none."""
        if name not in self.known:
            return escape(text)
        return f'<button type="button" class="term"{self.mark(name)}>{escape(text)}</button>'

    def mark(self, name: str) -> str:
        """The attribute that makes an element show a definition, with a blank before it; "" where there is none."""
        return f' data-def="{escape(name, quote=True)}"' if name in self.known else ""

    def section(self) -> str:
        """Every definition, folded, where the script finds them."""
        lines = "".join(
            f"<dt>{escape(label)}</dt>"
            f'<dd id="def-{escape(name, quote=True)}" data-label="{escape(label, quote=True)}">{escape(text)}</dd>'
            for name, (label, text) in self.known.items()
        )
        return f"<details><summary>Definitions</summary><dl>{lines}</dl></details>"


def collect_terms(definitions: Mapping[str, str], more: Mapping[str, tuple[str, str]]) -> Terms:
    """The definitions of an evaluation, those of groups once for all groups, then ``more``, then the page's own.

    ``definitions``: full metric name -> text, as an evaluation gives them; a group's text begins with "group: ".
    """
    labels = {row.quantity: row.label for row in (*rows_for(list(definitions)), *GLOBAL_ROWS)}
    groups = {name.partition("/")[0] for name in definitions if name.endswith("/passages")}
    known: dict[str, tuple[str, str]] = {}
    for name, text in definitions.items():
        area, _, quantity = name.partition("/")
        if area in groups:
            known.setdefault(quantity, (labels.get(quantity, quantity), text.partition(": ")[2]))
        else:
            known[name] = (labels.get(name, name), text)
    return Terms({**known, **more, **OWN})
