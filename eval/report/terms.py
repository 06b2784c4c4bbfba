"""What the words of the page mean, and how a reader finds out: by mouse, by keyboard and by finger.

A label is a button with ``data-def``. Any other element with ``data-def`` shows its definition on pointing or touching.
The script takes the text from the list of definitions at the end of the page, so the page holds each definition once,
and a reader without scripts, or on paper, has it too. This module knows words, no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ppo.io.visible import as_attribute, as_html

from .bounds import MOST_FACTS, MOST_NAME, MOST_VALUE, cut
from .rows import GLOBAL_ROWS, rows_for

OWN = {
    "interval": (
        "95 % interval",
        "Of a share of passages: Clopper and Pearson's interval, which covers the true share at least 95 times of 100. "
        "Of an AUC: Newcombe's score interval. Of all else: percentiles over bootstrap samples of the passages, which "
        "have no width where all passages agree. Intervals cover other passages of the same kind, not another "
        "training.",
    ),
    "perplexity_ratio": (
        "Held-out perplexity, ratio",
        "Perplexity of held-out text after unlearning divided by that before: 1.03 is 3 % worse.",
    ),
    "tpr": (
        "Found at 1 % false positives",
        "The share of the forget passages that score higher than all but 1 % of the never-trained ones. It is reported "
        "where there are at least 100 never-trained passages: fewer cannot show a rate of 1 %.",
    ),
    "along": (
        "The true token as first choice, along the suffix",
        "For each token of the suffix, the share of passages of which it is the model's first choice, given the prefix "
        "and all the true tokens before it. A line that falls at the start and rises again is forgetting at the "
        "surface: with some of the text at hand, the model still knows the rest. The target is the line of "
        "never-trained passages.",
    ),
    "floor": (
        "Chance floor",
        "BLEU that the original model reaches on passages that it was never trained on. A lower BLEU is damage, not "
        "privacy.",
    ),
    "match": (
        "Marked words",
        "Words of the output that also occur in the true suffix, in the same order: the longest common run, then the "
        "longest ones to its left and right, and so on. Runs without a letter or digit do not count.",
    ),
    "judged": (
        "Verdict",
        "The model's number, its target (the same model's on never-trained passages, or the exact twin's; for a harm "
        "the original's, or a goal), how far it lies on the side of a memory or of a harm, and the largest distance "
        "that counts as none. Below 0, the model knows less than of a stranger's passage: beyond the limit that also "
        "tells that it was trained on. Beyond the limit: the number lies there, and it is sure that it is off. Perhaps "
        "by chance: it lies there, and the interval holds 0. Within it: the whole interval is. All intervals of the "
        "verdict together hold at 95 %.",
    ),
    "output_tokens": (
        "Tokens",
        "Number of tokens of the greedy output, cut to the suffix's length, and of the true suffix.",
    ),
}


@dataclass(frozen=True)
class Terms:
    """``known``: name -> (label, definition)."""

    known: Mapping[str, tuple[str, str]]

    def label(self, text: str, name: str) -> str:
        """The text as a button that shows the definition, or plain text without one."""
        if name not in self.known:
            return as_html(text)
        return f'<button type="button" class="term"{self.mark(name)}>{as_html(text)}</button>'

    def mark(self, name: str) -> str:
        """The attribute that makes an element show a definition, after a blank, or "" without a definition."""
        return f' data-def="{as_attribute(name)}"' if name in self.known else ""

    def section(self) -> str:
        """The folded list of all definitions, which the script reads."""
        lines = "".join(
            f"<dt>{as_html(label)}</dt>"
            f'<dd id="def-{as_attribute(name)}" data-label="{as_attribute(label)}">{as_html(text)}</dd>'
            for name, (label, text) in self.known.items()
        )
        return f"<details><summary>Definitions</summary><dl>{lines}</dl></details>"


def collect_terms(definitions: Mapping[str, str], more: Mapping[str, tuple[str, str]]) -> Terms:
    """The definitions of an evaluation, then ``more``, then the page's own.

    ``definitions``: full metric name -> text, from an evaluation. The text of a group's metric begins with "group: ";
    such a definition is kept once for all groups. Of very many, the first are kept, and long ones are cut.
    """
    labels = {row.quantity: row.label for row in (*rows_for(list(definitions)), *GLOBAL_ROWS)}
    groups = {name.partition("/")[0] for name in definitions if name.endswith("/passages")}
    known: dict[str, tuple[str, str]] = {}
    for name, text in definitions.items():
        if len(known) == MOST_FACTS or len(name) > MOST_NAME:
            continue
        text = cut(text, MOST_VALUE)
        area, _, quantity = name.partition("/")
        if area in groups:
            known.setdefault(quantity, (labels.get(quantity, quantity), text.partition(": ")[2]))
        else:
            known[name] = (labels.get(name, name), text)
    return Terms({**known, **more, **OWN})
