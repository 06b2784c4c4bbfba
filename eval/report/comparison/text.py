"""A comparison in words and as tables: who beats whom, every number, and the paper's layout in Markdown and LaTeX.

Every sentence is computed from the means. This module knows no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppo.io.visible import table_cell, visible

from ...pareto import (
    ATTACK,
    ATTACK_SECRET,
    COLLAPSE_RULES,
    MAX_EXACT,
    TARGET,
    Mean,
    Verdict,
    front,
    matched,
    target,
    verdicts,
)

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
    ("cost/seconds", "seconds", "score"),
    ("cost/flops", "FLOPs", "size"),
)
TABLES = (
    ("Every point: secrets, and the longest verbatim run", SECRETS),
    ("Every point: what still comes out", FORGOTTEN),
    ("Every point: depth, forget less never trained", DEPTH),
    ("Every point: other measures of memorisation", MEMORISED),
    ("Every point: how far from chance, and from never having seen the records", DISTANCES),
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
    return [(name, " ".join(name.removeprefix(area).split("/", 1)), "share") for name in names]


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


def sentences(all_means: Sequence[Mean]) -> list[str]:
    """What the comparison says about DeMem: against training-time baselines first, then against the others."""
    head = (
        f"This compares points at matched forgetting (greedy extraction of at most {MAX_EXACT:.0%} of the forget set). "
        "A baseline beats DeMem where it has lower sampled extraction and a lower perplexity ratio at equal or better "
        "fluency."
    )
    own = [m for m in all_means if m.method == "demem"]
    if not own:
        return [head, "DeMem was not among the methods."]
    found = verdicts(all_means)
    lines = [head] if found else [head, "DeMem is not compared: it is at matched forgetting with no value of its knob."]
    lines += [_against(v, "training-time baseline") for v in found]
    lines += _targets(all_means, found)
    others = verdicts(all_means, kinds=("decoding",))
    beaten = [v for v in others if v.strict or v.weak or v.aside]
    lines += [_against(v, "decoding defence") for v in beaten]
    if others and others[0].rivals and not beaten:
        lines.append("No decoding defence at matched forgetting beats any of DeMem's points.")
    if any(m.kind == "decoding" for m in all_means):
        lines.append("A decoding defence leaves the model as it is: whoever holds the weights still gets everything.")
    return lines


def _against(verdict: Verdict, name: str) -> str:
    who = _who(verdict.mean)
    if verdict.mean.collapsed:
        return f"{who}: has collapsed ({', '.join(verdict.mean.collapsed)}); there is nothing to compare."
    if not verdict.rivals:
        return f"{who}: no {name} is at matched forgetting, so there is nothing to compare it with."
    aside = ""
    if verdict.aside:
        verb = "is" if len(verdict.aside) == 1 else "are"
        aside = f" Fluency left aside, {_names(verdict.aside, verdict.mean)} {verb} better by the other two numbers."
    if verdict.strict:
        return f"{who}: BEATEN by {_names(verdict.strict, verdict.mean)}.{aside}"
    if verdict.weak:
        better = f"a {name} is lower in one and not higher in the other: {_names(verdict.weak, verdict.mean)}"
        return f"{who}: not beaten in both, but {better}.{aside}"
    return f"{who}: not beaten by {_rivals(verdict, name)}.{aside}"


def _who(mean: Mean) -> str:
    is_default = " at its default" if mean.is_default else ""
    return f"{mean.label}{is_default}, {_count(mean.seeds, 'seed')}, {mean.size} records"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _rivals(verdict: Verdict, name: str) -> str:
    """ "the one point of a baseline" or "any of 5 points of a baseline, 3 collapsed"; a collapsed one beats nothing."""
    num, collapsed = len(verdict.rivals), len(verdict.collapsed)
    which = f"the one point of a {name}" if num == 1 else f"any of {num} points of a {name}"
    if not collapsed:
        return which
    return f"{which}, {'which has' if num == 1 else 'all of them' if collapsed == num else collapsed} collapsed"


SPOKEN: tuple[Column, ...] = (
    ("forget/exact_sampled", "sampled", "share"),
    ("forget_holdout/exact_sampled", "holdout sampled", "share"),
    ("perplexity_ratio", "perplexity ratio", "ratio"),
    ("fluency", "fluency", "number"),
    ("forget/true_token_p", "p(true)", "ratio"),
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


def _targets(all_means: Sequence[Mean], found: Sequence[Verdict]) -> list[str]:
    """The distances of DeMem and its rivals from the model trained without the records: a sentence a size."""
    lines = []
    for size in dict.fromkeys(v.mean.size for v in found):
        goal = target(all_means, size)
        if goal is None:
            continue
        near = [v for v in found if v.mean.size == size]
        shown = [m for m in (*(v.mean for v in near), *near[0].rivals) if m.is_default and not m.collapsed]
        probability, ratio = _own(goal, "forget/true_token_p", "ratio"), _own(goal, "perplexity_ratio", "ratio")
        lines.append(
            f"The target, a model trained without the {size} records ({TARGET}, {_count(goal.seeds, 'seed')}), gives "
            f"their true tokens a mean probability p(true) of {probability}, BLEU "
            f"{_own(goal, 'forget/bleu', 'score')} and a perplexity ratio of {ratio}; "
            f"its membership AUC is {_own(goal, 'membership/loss_auc', 'number')}, where 0.5 reveals nothing. "
            f"Distances from it: {'; '.join(map(_away, shown)) or 'none to show'}."
        )
    return lines


def _own(mean: Mean, name: str, kind: str) -> str:
    return number(mean.get(name), kind)


def _away(mean: Mean) -> str:
    return (
        f"{mean.label} p(true) {_own(mean, 'target_distance_p', 'ratio')}, BLEU "
        f"{_own(mean, 'target_distance', 'score')}, ratio {_own(mean, 'target_distance_ratio', 'ratio')} "
        f"(its own AUC: {_own(mean, 'membership/loss_auc', 'number')})"
    )


def marks(mean: Mean, fronted: Sequence[Mean]) -> str:
    """Whether a point is among ``fronted``, the rules that it breaks, or what a model trained again is; else ""."""
    if mean.kind == "retraining":
        name = "target" if mean.method == TARGET else "twin"
        return f"{name}; outputs {', '.join(mean.collapsed)}" if mean.collapsed else name
    if mean.collapsed:
        return "collapsed: " + ", ".join(mean.collapsed)
    return "front" if any(mean is m for m in fronted) else ""


def table(all_means: Sequence[Mean], columns: Sequence[Column]) -> list[list[str]]:
    """Head and rows of cells: the point, its marks, the wanted columns that some point has; [] where none has any."""
    present = [c for c in columns if any(m.get(c[0]) is not None for m in all_means)]
    rows, fronted = [["method", "mark", "records", "seeds", *(c[1] for c in present)]], front(all_means)
    for m in all_means:
        rows.append([m.label, marks(m, fronted), str(m.size), str(m.seeds), *(cell(m, c) for c in present)])
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


_LATEX = {sign: "\\" + sign for sign in "&%_#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in visible(text))


def document(all_means: Sequence[Mean]) -> str:
    """The text of compare.md."""
    rules = [f"- *{name}*: {rule}" for name, rule in COLLAPSE_RULES.items()]
    num = len(matched(all_means))
    every = [part for title, columns in TABLES if (rows := table(all_means, columns))
             for part in (f"### {title}", markdown(rows))]  # fmt: skip
    for area, title in ATTACKS.items():
        if attacks := table(all_means, attack_columns(all_means, area)):
            every += [f"### {title}", markdown(attacks)]
    parts = [
        "# Comparison",
        *sentences(all_means),
        "## Every point",
        f"Means over seeds ± their standard deviation; {num} of {len(all_means)} points are at matched forgetting. "
        "*front*: no training-time point at matched forgetting beats it. A point has collapsed if its outputs are",
        "\n".join(rules),
        *every,
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
    return "\n\n".join(parts) + "\n"
