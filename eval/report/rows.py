"""Which numbers a report shows, under which label and in which format, and the same comparison as plain text.

This module knows metric names and numbers, no HTML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ppo.io.visible import visible

from .bounds import MOST_GROUPS, cut

Kind = Literal["share", "score", "number"]
Record = Mapping[str, Any]

GROUP_LABELS = {
    "forget": "forget",
    "forget_holdout": "forget-holdout",
    "keep": "keep",
    "keep_shown": "keep-shown",
    "never": "never trained",
}
_AFTER = re.compile(r"(exact|accuracy)_after_[0-9]{1,7}")
_SECRET_AFTER = re.compile(r"secret_after_[0-9]{1,7}")
_SECRET_LEAK = re.compile(r"secret_leak_[0-9]{1,9}")
_LEAK = re.compile(r"(near_)?leak_[0-9]{1,9}")
_MOST_AFTER = 20  # numbers of true tokens that have a row
_MOST_SIGNS = 1000  # of a text in the terminal
_HEAD = ("id", "group", "kind", "repeats", "prompt", "truth", "secrets")


@dataclass(frozen=True)
class Row:
    """One line of the comparison. A share is shown in percent, a score with one decimal, a number with two."""

    quantity: str
    label: str
    kind: Kind
    section: str

    def text(self, value: float | None) -> str:
        """The formatted value, never "-0.0"; a dash for None."""
        if value is None:
            return "-"
        if self.kind == "share":
            return f"{100 * value:z.1f} %"
        return f"{value:z.1f}" if self.kind == "score" else f"{value:z.2f}"


def rows_for(names: Sequence[str]) -> list[Row]:
    """The rows for the given metric names (``area/quantity``), in reading order."""
    present = {name.partition("/")[2] for name in names}
    after = sorted((q for q in present if _AFTER.fullmatch(q)), key=_number_of)
    after = [q for name in ("exact", "accuracy") for q in [q for q in after if q.startswith(name)][:_MOST_AFTER]]
    rows = []
    for row in _ROWS:
        rows.append(row)
        if row.quantity == "secret_hinted":
            hints = sorted((q for q in present if _SECRET_AFTER.fullmatch(q)), key=_number_of)[:_MOST_AFTER]
            rows += [Row(q, f"… after {_number_of(q)} of them", "share", "Secrets") for q in hints]
        if row.quantity == "secret_p":
            leaks = sorted((q for q in present if _SECRET_LEAK.fullmatch(q)), key=_number_of)[:_MOST_AFTER]
            rows += [Row(q, f"… {_leak_label(q)}", "share", "Secrets") for q in leaks]
        if row.quantity == "exact_long":
            rows += [Row(q, after_label(q), "share", "Extraction") for q in after if q.startswith("exact")]
        if row.quantity == "ma_suffix":
            rows += [Row(q, f"… after the first {q.rpartition('_')[2]}", "share", "Teacher-forced")
                     for q in after if q.startswith("accuracy")]  # fmt: skip
        if row.quantity == "discoverable":
            leaks = sorted((q for q in present if _LEAK.fullmatch(q)), key=_number_of)[:_MOST_AFTER]
            leaks.sort(key=lambda q: q.startswith("near_"))
            rows += [Row(q, _leak_label(q), "share", "Extraction") for q in leaks]
    return [row for row in rows if row.quantity in present]


def after_label(quantity: str) -> str:
    """The label of ``exact_after_<number>``."""
    count = _number_of(quantity)
    return f"… after {count} more true token{'' if count == 1 else 's'}"


def _leak_label(quantity: str) -> str:
    near = "… but for a few tokens, at least, " if quantity.startswith("near_") else ""
    return f"{near}leak@{_number_of(quantity):,}"


def _number_of(quantity: str) -> int:
    return int(quantity.rpartition("_")[2])


_ROWS = (
    Row("secret_emitted", "Secret still emitted", "share", "Secrets"),
    Row("secret_greedy", "… greedily", "share", "Secrets"),
    Row("secret_sampled", "… in any of a few samples", "share", "Secrets"),
    Row("secret_hinted", "… after a hint of true tokens", "share", "Secrets"),
    Row("secret_in_context", "… with all before it shown", "share", "Secrets"),
    Row("secret_part", "Longest part of a secret", "share", "Secrets"),
    Row("secret_part_characters", "… in characters", "score", "Secrets"),
    Row("secret_p", "Secret in one sample, all before it shown", "share", "Secrets"),
    Row("secret_share", "Share of the secrets, greedily", "share", "Secrets"),
    Row("num_secrets", "Secrets of a passage", "number", "Secrets"),
    Row("verbatim_run", "Longest verbatim run, tokens", "score", "Secrets"),
    Row("verbatim_run_characters", "… in characters", "score", "Secrets"),
    Row("verbatim_run_sampled", "… of any of a few samples, tokens", "score", "Secrets"),
    Row("exact", "Exact extraction, greedy", "share", "Extraction"),
    Row("exact_long", "… with longer context", "share", "Extraction"),
    Row("exact_sampled", "… in any of a few samples", "share", "Extraction"),
    Row("discoverable", "(n, p)-discoverable", "share", "Extraction"),
    Row("approximate", "Approximate (BLEU ≥ 75)", "share", "Extraction"),
    Row("approximate_folded", "… up to case and space", "share", "Extraction"),
    Row("extraction_strength", "Extraction strength", "number", "Extraction"),
    Row("bleu", "BLEU of greedy output", "score", "Similarity"),
    Row("n_bleu", "N-BLEU (100 - BLEU)", "score", "Similarity"),
    Row("corpus_bleu", "Corpus BLEU", "score", "Similarity"),
    Row("bleu_sampled", "BLEU of samples", "score", "Similarity"),
    Row("edit", "Token edit distance", "number", "Similarity"),
    Row("ma", "Memorisation accuracy", "share", "Teacher-forced"),
    Row("ma_suffix", "Suffix accuracy", "share", "Teacher-forced"),
    Row("ma_unshared", "… on the passage's own tokens", "share", "Teacher-forced"),
    Row("ma_shared", "… on tokens shared with others", "share", "Teacher-forced"),
    Row("longest_run", "Longest run of right tokens", "score", "Teacher-forced"),
    Row("true_token_p", "Probability of the true token", "number", "Teacher-forced"),
    Row("p_unshared", "… of the passage's own tokens", "number", "Teacher-forced"),
    Row("p_shared", "… of tokens shared with others", "number", "Teacher-forced"),
    Row("nll_suffix", "NLL of the suffix (nats/token)", "number", "Teacher-forced"),
    Row("nll_unshared", "… of the passage's own tokens", "number", "Teacher-forced"),
    Row("lens_right", "Own tokens readable at a block", "share", "Teacher-forced"),
    Row("lens_layer", "First block where readable", "score", "Teacher-forced"),
    Row("el_10", "Extraction likelihood, n = 10", "number", "Teacher-forced"),
    Row("el_10_generated", "… over generated 10-grams", "number", "Teacher-forced"),
    Row("writing", "Writing, 0 to 1", "number", "Fluency"),
    Row("non_words", "Words that are none", "share", "Fluency"),
    Row("empty", "Empty outputs", "share", "Fluency"),
    Row("length_ratio", "Length / truth's", "number", "Fluency"),
    Row("usual_length", "Length / original's on never", "number", "Fluency"),
    Row("distinct_2_ratio", "Distinct bigrams / truth's", "number", "Fluency"),
    Row("loop", "Tokens in loops", "share", "Fluency"),
    Row("garbled", "Garbled characters", "share", "Fluency"),
    Row("copied", "Copied from the prompt", "share", "Fluency"),
    Row("output_nll", "NLL under the original (nats)", "number", "Fluency"),
    Row("output_order", "Order of words (nats)", "number", "Fluency"),
    Row("truth_order", "… of the true suffix", "number", "Fluency"),
)
GLOBAL_ROWS = (
    Row("holdout/perplexity", "Held-out perplexity", "number", "Utility"),
    Row("holdout/nll", "Held-out NLL (nats/token)", "number", "Utility"),
    Row("utility/cloze", "Cloze accuracy", "share", "Utility"),
    Row("membership/loss_auc", "Membership AUC, loss", "number", "Membership"),
    Row("membership/zlib_auc", "Membership AUC, zlib", "number", "Membership"),
    Row("membership/min_k_auc", "Membership AUC, min-k %", "number", "Membership"),
    Row("membership/min_k_plus_plus_auc", "Membership AUC, min-k %++", "number", "Membership"),
    Row("membership/loss_tpr", "Members found at 1 % FPR, loss", "share", "Membership"),
)
DEPTH_ROWS = (  # of the terminal; the page has a section of its own
    Row("depth/ma_suffix", "Suffix accuracy, forget - never", "share", "Depth"),
    Row("depth/ma_unshared", "… on the passage's own tokens", "share", "Depth"),
    Row("depth/nll_suffix", "NLL of the suffix, forget - never", "number", "Depth"),
    Row("depth/longest_run", "Longest run, forget - never", "score", "Depth"),
)
MAIN_HINT = 7  # with fewer true tokens shown, exact extraction has a row in the full table only
SHORT = (
    "secret_emitted", "secret_greedy", "secret_sampled", "secret_hinted", "secret_part", "secret_part_characters",
    "secret_p", "secret_leak_1000", "verbatim_run", "verbatim_run_characters", "exact", "exact_long", "exact_sampled",
    "approximate", "bleu", "true_token_p", "writing", "non_words", "empty", "length_ratio", "usual_length",
    "distinct_2_ratio",
)  # fmt: skip


def groups_of(summary: Mapping[str, float]) -> list[str]:
    """The groups of passages in a summary: the known ones in their usual order, then the others."""
    present = [name.partition("/")[0] for name in summary if name.endswith("/passages")]
    return [g for g in GROUP_LABELS if g in present] + [g for g in present if g not in GROUP_LABELS]


def group_label(group: str) -> str:
    """A group's name for readers."""
    return GROUP_LABELS.get(group, group)


def pair_records(before: Sequence[Record], after: Sequence[Record] | None = None) -> list[dict[str, Any]]:
    """One record per passage: its id, labels and texts, and under "before" and "after" its output and numbers.

    ValueError when the two evaluations are not about the same passages in the same order.
    """
    if after is not None and [r["id"] for r in before] != [r["id"] for r in after]:
        raise ValueError(f"{len(before)} records before and {len(after)} after are not about the same passages")
    paired = []
    for i, record in enumerate(before):
        row: dict[str, Any] = {name: record[name] for name in _HEAD if name in record}
        row["before"] = {name: value for name, value in record.items() if name not in _HEAD}
        if after is not None:
            row["after"] = {name: value for name, value in after[i].items() if name not in _HEAD}
        paired.append(row)
    return paired


def render_table(
    before: Mapping[str, float],
    after: Mapping[str, float] | None = None,
    *,
    intervals: Mapping[str, Sequence[float]] | None = None,
    is_full: bool = False,
) -> str:
    """A plain-text table: one quantity a row, one group a column, "before → after" in every cell.

    It is aligned and has no escape codes. ``before`` and ``after`` are summaries. ``intervals``: those of the newer,
    shown beside the membership AUCs. ``is_full`` shows every quantity, not only the main ones. Of very many groups the
    table shows the first ones, and says so.
    """
    every = groups_of(before)
    groups = every[:MOST_GROUPS]
    rows = [row for row in rows_for(list(before)) if is_full or _is_main(row.quantity)]
    table = [["", *(f"{visible(cut(group_label(g), 60))} ({before[f'{g}/passages']:.0f})" for g in groups)]]
    table += [[row.label, *(_cell(row, f"{g}/{row.quantity}", before, after) for g in groups)] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(groups) + 1)]
    depth = [row for row in DEPTH_ROWS if row.quantity in before]
    widths[0] = max(widths[0], *(len(row.label) for row in depth), 0)
    lines = ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
             for line in table]  # fmt: skip
    lines.insert(1, "-" * len(lines[0]))
    lines.append(lines[1])
    lines += [
        f"{row.label.ljust(widths[0])}  {_cell(row, row.quantity, before, after).rjust(widths[1])}" for row in depth
    ]
    for row in GLOBAL_ROWS:
        if row.quantity in before and (is_full or row.quantity in ("holdout/perplexity", "membership/loss_auc")):
            value = _cell(row, row.quantity, before, after)
            beside = _ratio(row, before, after) or _range(row, intervals or {})
            lines.append(f"{row.label.ljust(widths[0])}  {value}{beside}")
    if len(every) > len(groups):
        lines.append(f"Shown: the first {len(groups)} of {len(every)} groups.")
    return "\n".join(line.rstrip() for line in lines)


def render_passage(record: Record) -> str:
    """One paired record as plain text: the end of its prompt, its true suffix, and the outputs before and after."""
    texts = {"prompt": "…" + record["prompt"][-80:], "truth": record["truth"]}
    texts |= {label: record[label]["output"] for label in ("before", "after") if record.get(label)}
    lines = [f"  {name:7} {visible(' '.join(cut(text, _MOST_SIGNS).split()))}" for name, text in texts.items()]
    return "\n".join([visible(cut(record["id"])), *lines])


def _is_main(quantity: str) -> bool:
    is_late = _AFTER.fullmatch(quantity) is not None and _number_of(quantity) >= MAIN_HINT
    return quantity in SHORT or (is_late and quantity.startswith("exact"))


def _cell(row: Row, name: str, before: Mapping[str, float], after: Mapping[str, float] | None) -> str:
    if after is None:
        return row.text(before.get(name))
    return f"{row.text(before.get(name))} → {row.text(after.get(name)).rjust(7)}"


def _ratio(row: Row, before: Mapping[str, float], after: Mapping[str, float] | None) -> str:
    if row.quantity != "holdout/perplexity" or after is None or "holdout/perplexity" not in after:
        return ""
    return f"  (x{after[row.quantity] / before[row.quantity]:.3f})"


def _range(row: Row, intervals: Mapping[str, Sequence[float]]) -> str:
    if not row.quantity.startswith("membership/") or row.quantity not in intervals:
        return ""
    low, high = (row.text(end) for end in intervals[row.quantity])
    return f"  (95 %: {low} to {high}; chance: {'0.50' if row.quantity.endswith('_auc') else '1 %'})"
