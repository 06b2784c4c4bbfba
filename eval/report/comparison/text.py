"""A comparison as tables: every number, and the paper's layout in Markdown and LaTeX. This module knows no HTML."""

from __future__ import annotations

from collections.abc import Sequence

from ppo.io.visible import table_cell, visible

from ...pareto import ATTACK, ATTACK_SECRET, TARGET, Mean
from ..rows import group_label

Column = tuple[str, str, str]
"""A quantity, its head, and its format: a share in percent, a number with some digits, or a size like 1.2e+09."""

FORGOTTEN: tuple[Column, ...] = (
    ("forget/exact", "exact", "share"),
    ("forget/exact_sampled", "sampled", "share"),
    ("forget/discoverable", "(n,p)", "share"),
    ("forget_holdout/exact", "holdout exact", "share"),
    ("forget_holdout/exact_sampled", "holdout sampled", "share"),
    ("forget_holdout/discoverable", "holdout (n,p)", "share"),
)
SECRETS: tuple[Column, ...] = (
    ("forget/secret_emitted", "secret still emitted", "share"),
    ("never/secret_emitted", "never trained", "share"),
    ("forget/secret_greedy", "greedily", "share"),
    ("forget/secret_sampled", "sampled", "share"),
    ("forget/secret_hinted", "after a hint", "share"),
    ("forget_holdout/secret_emitted", "holdout", "share"),
    ("forget/verbatim_run", "longest run, tokens", "score"),
    ("never/verbatim_run", "never trained, tokens", "score"),
    ("forget/verbatim_run_characters", "longest run, characters", "score"),
)
DISTANCES: tuple[Column, ...] = (
    ("floor_distance", "BLEU from chance", "score"),
    ("floor_distance_p", "p(true) from chance", "ratio"),
    ("target_distance", "BLEU from target", "score"),
    ("target_distance_p", "p(true) from target", "ratio"),
    ("target_distance_ma", "right tokens from target", "share"),
    ("target_distance_ratio", "perplexity ratio from target", "ratio"),
    ("forget/true_token_p", "p(true)", "ratio"),
    ("membership/loss_auc", "membership AUC", "number"),
)
MEMORISED: tuple[Column, ...] = (
    ("forget/extraction_strength", "ES", "ratio"),
    ("forget/ma", "MA", "share"),
    ("forget/ma_suffix", "MA, suffix", "share"),
    ("forget/el_10", "EL10", "ratio"),
    ("forget/n_bleu", "N-BLEU", "score"),
    ("forget_holdout/extraction_strength", "holdout ES", "ratio"),
    ("forget_holdout/ma_suffix", "holdout MA, suffix", "share"),
    ("forget_holdout/el_10", "holdout EL10", "ratio"),
    ("forget_holdout/n_bleu", "holdout N-BLEU", "score"),
)
DEPTH: tuple[Column, ...] = (
    ("forget/ma_suffix", "right tokens: forget", "share"),
    ("never/ma_suffix", "never", "share"),
    ("depth/ma_suffix", "difference", "share"),
    ("forget/ma_unshared", "own tokens right: forget", "share"),
    ("never/ma_unshared", "own, never", "share"),
    ("depth/ma_unshared", "own, difference", "share"),
    ("depth/exact_after_25", "after 25 true tokens, difference", "share"),
    ("depth/longest_run", "longest run, difference", "score"),
    ("depth/nll_suffix", "NLL, difference", "number"),
    ("depth/lens_right", "readable at a block, difference", "share"),
    ("forget/leak_1000", "leak@1,000", "share"),
)
KEPT: tuple[Column, ...] = (
    ("keep/exact", "keep survives", "share"),
    ("perplexity_ratio", "perplexity ratio", "ratio"),
    ("utility/cloze", "cloze", "share"),
    ("fluency", "fluency", "number"),
    ("forget/writing", "writing", "number"),
    ("forget/non_words", "non-words", "share"),
    ("forget/usual_length", "length", "number"),
    ("cost/updates", "updates", "score"),
    ("cost/seconds", "seconds", "score"),
    ("cost/flops", "FLOPs", "size"),
)
TABLES = (
    ("Every point: secrets, and the longest verbatim run", SECRETS),
    ("Every point: what still comes out", FORGOTTEN),
    ("Every point: depth, forget less never trained", DEPTH),
    ("Every point: other measures of memorisation", MEMORISED),
    ("Every point: how far from chance, and from the exact twin (target)", DISTANCES),
    ("Every point: what is left of the model, and the cost", KEPT),
)
ATTACKS = {
    ATTACK_SECRET: "Every point: of how many passages attacks get a secret out",
    ATTACK: "Every point: what attacks get out exactly",
}
PAPER: tuple[Column, ...] = (
    ("forget/n_bleu", "N-BLEU", "score"),
    ("holdout/perplexity", "PPL", "score"),
    ("gen_ppl", "GEN-PPL", "score"),
    ("holdout/accuracy", "Acc.", "share"),
)
PAPER_NOTE = (
    "N-BLEU, held-out perplexity (PPL), perplexity of the output under the original model (GEN-PPL), and accuracy "
    "(of the next token of held-out text), for each number of forget records that was measured. Every method is at its "
    "knob's default. The paper has 32, 128 and 256 records. The built-in lab has 128 records to forget in all, so 256 "
    "cannot be measured there."
)
AS_PUBLISHED: tuple[Column, ...] = (
    ("paper/n_bleu", "N-BLEU", "score"),
    ("paper/n_bleu_early_4", "N-BLEU, cut early", "score"),
    ("paper/gen_ppl", "GEN-PPL", "score"),
    ("paper/ma", "MA", "share"),
    ("paper/dropped", "rows dropped", "share"),
)


def attack_columns(all_means: Sequence[Mean], area: str = ATTACK) -> list[Column]:
    """A column for every group and variant that was attacked, in the order of the attacks. ``area``: of ``ATTACKS``."""
    names = dict.fromkeys(name for mean in all_means for name in mean.values if name.startswith(area))
    parts = {name: name.removeprefix(area).split("/", 1) for name in names}
    return [(name, f"{group_label(group)} {attack}", "share") for name, (group, attack) in parts.items()]


def number(value: float | None, kind: str) -> str:
    """A value as text, by its kind; a dash for None."""
    if value is None:
        return "-"
    if kind == "share":
        return f"{100 * value:.1f} %"
    if kind == "size" or abs(value) >= 1e5:
        return f"{value:.2g}"
    return f"{value:.{ {'score': 1, 'number': 2, 'ratio': 3}[kind] }f}"


def cell(mean: Mean, column: Column) -> str:
    """The mean, with the standard deviation over the seeds where they differ."""
    name, _, kind = column
    text, spread = number(mean.get(name), kind), mean.spreads.get(name, 0.0)
    return f"{text.removesuffix(' %')} ± {number(spread, kind)}" if spread and kind != "size" else text


RETRAINED = {
    TARGET: "target: trained without the records alone",
    "retain-only": "no target: it never met the form of the records either",
    "dedup": "trained on the deduplicated corpus",
}


def marks(mean: Mean) -> str:
    """Whether a point is on the front, the rules that it breaks, or what a model trained again is; else ""."""
    if mean.kind == "retraining":
        name = RETRAINED.get(mean.method, "trained again")
        return f"{name}; outputs {', '.join(mean.collapsed)}" if mean.collapsed else name
    if mean.collapsed:
        return "collapsed: " + ", ".join(mean.collapsed)
    return "front" if mean.is_front else ""


def table(all_means: Sequence[Mean], columns: Sequence[Column]) -> list[list[str]]:
    """Head and rows of cells: the point, its marks, the wanted columns that some point has; [] where none has any."""
    present = [c for c in columns if any(m.get(c[0]) is not None for m in all_means)]
    rows = [["method", "mark", "records", "seeds", *(c[1] for c in present)]]
    for m in all_means:
        rows.append([m.label, marks(m), str(m.size), str(m.seeds), *(cell(m, c) for c in present)])
    return rows if present else []


def paper_table(all_means: Sequence[Mean]) -> list[list[str]]:
    """The paper's layout: a row a method at its knob's default, its four columns for every number of forget records.

    The numbers of records are those that were measured; the paper's own are 32, 128 and 256.
    """
    sizes = sorted({m.size for m in all_means})
    rows = [["method", *(f"{head} ({size})" for size in sizes for _, head, _ in PAPER)]]
    chosen = [m for m in all_means if m.is_default]
    for method in dict.fromkeys(m.method for m in chosen):
        by_size = {m.size: m for m in chosen if m.method == method}
        cells = [cell(by_size[s], c) if s in by_size else "-" for s in sizes for c in PAPER]
        rows.append([method, *cells])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(table_cell(x) for x in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def latex(rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX tabular with the rules of booktabs; the first row is its head."""

    def line(row: Sequence[str]) -> str:
        return " & ".join(_escaped(x) for x in row) + r" \\"

    body = [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", line(rows[0]), r"\midrule"]
    return "\n".join([*body, *map(line, rows[1:]), r"\bottomrule", r"\end{tabular}"])


def latex_notes(lines: Sequence[tuple[str, str]]) -> str:
    """Lines under a tabular, each with what it is about in front."""
    told = [rf"\textit{{{_escaped(name)}.}} {_escaped(text)}\par" for name, text in lines]
    return "\n".join([r"\par\smallskip\footnotesize", *told])


_LATEX = {sign: "\\" + sign for sign in "&%_#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in visible(text))
