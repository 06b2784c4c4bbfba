"""compare.md: what a comparison says, and every number of it. This module knows no HTML."""

from __future__ import annotations

from collections.abc import Sequence

from ...pareto import COLLAPSE_RULES, MAX_EXACT, Mean, matched
from .given import given_lines
from .headline import first_table, headline
from .text import AS_PUBLISHED, ATTACKS, PAPER_NOTE, TABLES, attack_columns, markdown, paper_table, table
from .verdict import clean_table, margins, sentences, standings

CLEAN = "### Clean, or not"
CLEAN_NOTE = (
    "*clean*: no number tells the forget set from the target's by more than its limit, and the model was not harmed, "
    "as far as was measured; *not known*: too few passages to tell. Memory left: 0 % as the target, 100 % every token "
    "known. Limits and reasons: `eval/margins.py`."
)


def document(all_means: Sequence[Mean]) -> str:
    """The text of compare.md: who beats whom, one table and what its methods were given; then all the rest."""
    standing = [part for size in dict.fromkeys(m.size for m in all_means) if (rows := standings(all_means, size))
                for part in (f"### Who beats whom at the defaults, {size} records", markdown(rows))]  # fmt: skip
    if standing:
        standing += ["Margins:", "\n".join(f"- {line}" for line in margins())]
    clean = [CLEAN, markdown(rows), CLEAN_NOTE] if (rows := clean_table(all_means)) else []
    parts = [
        "# Comparison",
        "\n".join(f"- {line}" for line in headline(all_means)),
        "## The methods at their defaults",
        markdown(first_table(all_means)),
        "\n".join(f"- *{name}*: {text}" for name, text in given_lines(all_means)),
        "## Every difference",
        *sentences(all_means),
        *standing,
        *clean,
        *_every_point(all_means),
        "## The paper's layout",
        PAPER_NOTE,
        markdown(paper_table(all_means)),
    ]
    if any(m.get("paper/n_bleu") is not None for m in all_means):
        parts += [
            "## The paper's numbers as its script computes them",
            "They include the script's flaws (see `eval/paper.py`). Compare them with the paper's numbers alone.",
            markdown(table(all_means, AS_PUBLISHED)),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _every_point(all_means: Sequence[Mean]) -> list[str]:
    """What the tables of all points mean, and those tables."""
    parts = [
        "## Every point",
        f"Means over seeds ± their standard deviation; {len(matched(all_means))} of {len(all_means)} points are at "
        "matched forgetting. *front*: no other training-time point at matched forgetting (greedy extraction of at most "
        f"{MAX_EXACT:.0%} of the forget set) is better. A point has collapsed if its outputs are",
        "\n".join(f"- *{name}*: {rule}" for name, rule in COLLAPSE_RULES.items()),
    ]
    for title, columns in TABLES:
        if rows := table(all_means, columns):
            parts += [f"### {title}", markdown(rows)]
    for area, title in ATTACKS.items():
        if attacks := table(all_means, attack_columns(all_means, area)):
            parts += [f"### {title}", markdown(attacks)]
    return parts
