"""A comparison in words and as tables: who beats whom, every number, and the paper's layout in Markdown and LaTeX.

All of it is computed from the means; nothing is said that they do not say. This module knows no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..pareto import COLLAPSE_RULES, FLUENCY_SLACK, MAX_EXACT, Mean, Verdict, front, matched, verdicts

Column = tuple[str, str, str]
"""A quantity, its head, and its format: a share in percent, a number with some digits, or a size like 1.2e+09."""

COLUMNS: tuple[Column, ...] = (
    ("forget/exact", "exact", "share"),
    ("forget/exact_sampled", "sampled", "share"),
    ("forget/discoverable", "(n,p)", "share"),
    ("forget_holdout/exact", "holdout exact", "share"),
    ("forget_holdout/exact_sampled", "holdout sampled", "share"),
    ("forget_holdout/discoverable", "holdout (n,p)", "share"),
    ("keep/exact", "keep survives", "share"),
    ("perplexity_ratio", "perplexity ratio", "ratio"),
    ("utility/cloze", "cloze", "share"),
    ("floor_distance", "BLEU from chance", "score"),
    ("floor_distance_p", "p(true) from chance", "ratio"),
    ("fluency", "fluency", "number"),
    ("cost/seconds", "seconds", "score"),
    ("cost/flops", "FLOPs", "size"),
)
PAPER: tuple[Column, ...] = (
    ("forget/n_bleu", "N-BLEU", "score"),
    ("holdout/perplexity", "PPL", "score"),
    ("gen_ppl", "GEN-PPL", "score"),
    ("holdout/accuracy", "Acc.", "share"),
)
PAPER_SIZES = (32, 128, 256)
AS_PUBLISHED: tuple[Column, ...] = (
    ("paper/n_bleu", "N-BLEU", "score"),
    ("paper/n_bleu_early_4", "N-BLEU, cut early", "score"),
    ("paper/gen_ppl", "GEN-PPL", "score"),
    ("paper/ma", "MA", "share"),
    ("paper/dropped", "rows dropped", "share"),
)


def number(value: float | None, kind: str) -> str:
    """A value as a reader wants it; a dash where there is none."""
    if value is None:
        return "-"
    if kind == "share":
        return f"{100 * value:.1f} %"
    if kind == "size" or abs(value) >= 1e5:
        return f"{value:.2g}"
    return f"{value:.{ {'score': 1, 'number': 2, 'ratio': 3}[kind] }f}"


def cell(mean: Mean, column: Column) -> str:
    """Mean, and standard deviation over the seeds where there are several and they differ."""
    name, _, kind = column
    text, spread = number(mean.get(name), kind), mean.spreads.get(name, 0.0)
    return f"{text.removesuffix(' %')} ± {number(spread, kind)}" if spread and kind != "size" else text


def sentences(all_means: Sequence[Mean]) -> list[str]:
    """What the comparison says about DeMem: against training-time baselines first, then against the others."""
    found = verdicts(all_means)
    head = (
        f"Compared are points at matched forgetting (greedy extraction of at most {MAX_EXACT:.0%} of the forget set). "
        "A baseline beats DeMem where it has lower sampled extraction and a lower perplexity ratio at equal or better "
        "fluency."
    )
    own = [m for m in all_means if m.method == "demem"]
    if not own:
        return [head, "DeMem was not among the methods."]
    lines = [head] if found else [head, "DeMem is at matched forgetting with no value of its knob: it is not compared."]
    lines += [_against(v, "training-time baseline") for v in found]
    for kind, name in (("decoding", "decoding defence"), ("retraining", "model trained again without the records")):
        others = verdicts(all_means, kinds=(kind,))
        beaten = [v for v in others if v.strict or v.weak or v.close]
        lines += [_against(v, name) for v in beaten]
        if others and others[0].rivals and not beaten:
            lines.append(f"No {name} at matched forgetting beats any of DeMem's points.")
    if any(m.kind == "decoding" for m in all_means):
        lines.append("A decoding defence leaves the model as it is: whoever holds the weights still gets everything.")
    return lines


def _against(verdict: Verdict, name: str) -> str:
    mean, is_default = verdict.mean, " at its default" if verdict.mean.is_default else ""
    who = f"{mean.label}{is_default}, {mean.seeds} seed{'s' if mean.seeds > 1 else ''}, {mean.size} records"
    if mean.collapsed:
        return f"{who}: has collapsed ({', '.join(mean.collapsed)}); there is nothing to compare."
    if not verdict.rivals:
        return f"{who}: no {name} is at matched forgetting, so there is nothing to compare it with."
    close = ""
    if verdict.close:
        close = f" With a fluency lower by at most {FLUENCY_SLACK:g} it would be by {_names(verdict.close, mean)}."
    if verdict.strict:
        return f"{who}: BEATEN by {_names(verdict.strict, mean)}.{close}"
    if verdict.weak:
        better = f"a {name} has less of one and no more of the other: {_names(verdict.weak, mean)}"
        return f"{who}: not beaten in both, but {better}.{close}"
    return f"{who}: not beaten by any of {verdict.rivals} points of a {name}.{close}"


SPOKEN: tuple[Column, ...] = (
    ("forget/exact_sampled", "sampled", "share"),
    ("perplexity_ratio", "perplexity ratio", "ratio"),
    ("fluency", "fluency", "number"),
    ("keep/exact", "records to keep that survive", "share"),
)


def _names(means: Sequence[Mean], against: Mean) -> str:
    def one(mean: Mean) -> str:
        pairs = [
            f"{head} {number(mean.get(name), kind)} against {number(against.get(name), kind)}"
            for name, head, kind in SPOKEN
            if mean.get(name) is not None
        ]
        return f"{mean.label} ({', '.join(pairs)})"

    return "; ".join(map(one, means))


def marks(mean: Mean, all_means: Sequence[Mean]) -> str:
    """ "front", what has collapsed, or nothing."""
    if mean.collapsed:
        return "collapsed: " + ", ".join(mean.collapsed)
    return "front" if any(mean is m for m in front(all_means)) else ""


def table(all_means: Sequence[Mean], columns: Sequence[Column]) -> list[list[str]]:
    """Head and rows of cells: the point, the wanted columns that some point has, its marks."""
    present = [c for c in columns if any(m.get(c[0]) is not None for m in all_means)]
    rows = [["method", "records", "seeds", *(c[1] for c in present), ""]]
    for m in all_means:
        rows.append([m.label, str(m.size), str(m.seeds), *(cell(m, c) for c in present), marks(m, all_means)])
    return rows


def paper_table(all_means: Sequence[Mean]) -> list[list[str]]:
    """The paper's layout: a row a method at its knob's default, its four columns for every number of forget records.

    The paper's sizes, and whatever else was measured; a size that was not has dashes.
    """
    measured = {m.size for m in all_means}
    sizes = sorted(measured | (set(PAPER_SIZES) if measured & set(PAPER_SIZES) else set()))
    rows = [["method", *(f"{head} ({size})" for size in sizes for _, head, _ in PAPER)]]
    chosen = [m for m in all_means if m.is_default]
    for method in dict.fromkeys(m.method for m in chosen):
        by_size = {m.size: m for m in chosen if m.method == method}
        cells = [cell(by_size[s], c) if s in by_size else "-" for s in sizes for c in PAPER]
        rows.append([method, *cells])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def latex(rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX tabular in booktabs' manner; the first row is its head."""

    def line(row: Sequence[str]) -> str:
        return " & ".join(_escaped(x) for x in row) + r" \\"

    body = [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", line(rows[0]), r"\midrule"]
    return "\n".join([*body, *map(line, rows[1:]), r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    for sign in "\\&%_#$":
        text = text.replace(sign, r"\textbackslash{}" if sign == "\\" else "\\" + sign)
    return text.replace("±", r"$\pm$")


def document(all_means: Sequence[Mean]) -> str:
    """compare.md."""
    rules = [f"- *{name}*: {rule}" for name, rule in COLLAPSE_RULES.items()]
    num = len(matched(all_means))
    parts = [
        "# Comparison",
        *sentences(all_means),
        "## Every point",
        f"Means over seeds ± their standard deviation; {num} of {len(all_means)} points are at matched forgetting. "
        "*front*: no training-time point at matched forgetting beats it. Collapsed are points whose forget outputs are",
        "\n".join(rules),
        markdown(table(all_means, COLUMNS)),
        "## The paper's layout",
        "N-BLEU, held-out perplexity, perplexity of the output under the original model, and accuracy (of the next "
        "token of held-out text), for each number of forget records; every method at its knob's default.",
        markdown(paper_table(all_means)),
    ]
    if any(m.get("paper/n_bleu") is not None for m in all_means):
        parts += [
            "## The paper's numbers as its script computes them",
            "Flaws included, see `eval/paper.py`; beside them nothing here is to be trusted.",
            markdown(table(all_means, AS_PUBLISHED)),
        ]
    return "\n\n".join(parts) + "\n"
