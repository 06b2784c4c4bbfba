"""The comparison as one HTML page: forgetting against utility, every point, who beats whom. Opens offline.

This module draws what :mod:`eval.pareto` worked out; it computes nothing of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..paper import DEFINITIONS as AS_PUBLISHED_DEFINITIONS
from ..pareto import COLLAPSE_RULES, DERIVED, Mean, front, means
from ..results import replace_text
from ..settings import Settings, quantity_definitions
from .pareto_text import (
    AS_PUBLISHED,
    COLUMNS,
    Column,
    cell,
    document,
    latex,
    marks,
    number,
    paper_table,
    sentences,
    table,
)  # fmt: skip
from .style import CSS
from .svg import Dot, scatter_chart

COLOURS = ("#0b6b8f", "#d1495b", "#edae49", "#00798c", "#8f5db7", "#3f8f3f", "#a0522d", "#e377c2", "#6b7b8c", "#111",
           "#17becf", "#bcbd22", "#7f3b08", "#c51b7d")  # fmt: skip
MORE_CSS = """
svg .thread { fill:none; stroke-width:1; opacity:.45; } svg .error { stroke-width:1; opacity:.7; }
svg .ring { fill:none; stroke-width:1.5; } svg .cross { fill:none; stroke-width:2; } svg .spot { stroke:none; }
.verdict { border-left:3px solid var(--after); padding-left:.9rem; } .front td:first-child { font-weight:600; }
"""
FORGETTING = (
    ("forget/exact", "Forget set, greedy"),
    ("forget/exact_sampled", "Forget set, in any of a few samples"),
    ("forget/discoverable", "Forget set, (n, p)-discoverable"),
    ("forget_holdout/exact", "Forget-holdout, greedy"),
    ("forget_holdout/exact_sampled", "Forget-holdout, in any of a few samples"),
    ("forget_holdout/discoverable", "Forget-holdout, (n, p)-discoverable"),
)
UTILITY = (
    ("perplexity_ratio", "perplexity ratio", "Against held-out perplexity"),
    ("keep/exact", "keep survives", "Against the survival of the records to keep"),
    ("utility/cloze", "cloze accuracy", "Against cloze accuracy"),
)
SHARES = ((0.0, "0 %"), (0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %"), (1.0, "100 %"))
RATIOS = (0.9, 1.0, 1.1, 1.5, 2.0, 5.0, 10.0, 100.0)


def write_pages(out: Path, points: Sequence[Mapping[str, Any]], *, order: Sequence[str]) -> None:
    """compare.html, compare.md and compare.tex from the points of a folder, methods in the given order."""
    rank = {name: i for i, name in enumerate(order)}
    found = means(sorted(points, key=lambda p: (p["size"], rank.get(p["method"], len(rank)))))
    replace_text(out / "compare.md", document(found))
    replace_text(out / "compare.tex", latex(paper_table(found)) + "\n")
    replace_text(out / "compare.html", render_comparison(found, points))


def render_comparison(all_means: Sequence[Mean], points: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as a string; ``points`` are what the means were taken of, for where they come from."""
    names = list(dict.fromkeys(m.method for m in all_means))
    colours = "".join(
        f".m{i} .spot,.key i.m{i} {{ fill:{c}; background:{c}; }} .m{i}.thread,.m{i} .error,.m{i} .ring,.m{i} .cross "
        f"{{ stroke:{c}; }}\n"
        for i, c in ((i, COLOURS[i % len(COLOURS)]) for i in range(len(names)))
    )
    says = "".join(f"<p>{escape(line)}</p>" for line in sentences(all_means))
    key = "".join(f'<i class="m{i}"></i>{escape(name)}' for i, name in enumerate(names))
    body = [
        "<h1>DeMem and its rivals</h1>",
        f'<p class="soft">{len(points)} trainings and evaluations, {len(all_means)} points, {len(names)} methods.</p>',
        f'<h2>What the comparison says</h2><div class="verdict">{says}</div>',
        f'<h2>Forgetting against utility</h2><p class="key small soft">{key}</p>',
        '<p class="soft small">A line joins the values of one method\'s knob. Bars: one standard deviation over seeds. '
        "Ringed: no training-time point at matched forgetting beats it. Crossed: collapsed. Down and right of nothing "
        "is good: less extraction lies left, and the target is the model that never saw the records.</p>",
        *(_charts(all_means, names, *wanted) for wanted in UTILITY),
        _floor_charts(all_means, names),
        _table("Every point", all_means, COLUMNS),
        _paper(all_means),
        _table("The paper's numbers as its script computes them", all_means, AS_PUBLISHED),
        _notes(points),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>DeMem and its rivals</title><style>{CSS}{MORE_CSS}{colours}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _charts(all_means: Sequence[Mean], names: Sequence[str], quantity: str, axis: str, title: str) -> str:
    present = [(x, text) for x, text in FORGETTING if any(m.get(x) is not None for m in all_means)]
    if not any(m.get(quantity) is not None for m in all_means):
        return ""
    cells = [_chart(all_means, names, x, quantity, text, ("extracted", axis), SHARES) for x, text in present]
    return f'<h3>{escape(title)}</h3><div class="charts">{"".join(cells)}</div>'


def _floor_charts(all_means: Sequence[Mean], names: Sequence[str]) -> str:
    if not any(m.get("floor_distance") is not None for m in all_means):
        return ""
    ticks = [(float(t), f"{t}") for t in (0, 20, 40, 60, 80, 100)]
    wanted = (("floor_distance", "BLEU, distance to chance", ticks),
              ("floor_distance_p", "Probability of the true token, distance to chance",
               [(t / 10, f"{t / 10:g}") for t in range(0, 7)]))  # fmt: skip
    cells = [_chart(all_means, names, x, "perplexity_ratio", title, ("distance", "perplexity ratio"), t)
             for x, title, t in wanted]  # fmt: skip
    return (
        "<h3>Distance to the chance floor: forgetting too much is an error as well</h3>"
        f'<div class="charts">{"".join(cells)}</div>'
    )


def _chart(
    all_means: Sequence[Mean], names: Sequence[str], x: str, y: str, title: str, axes: tuple[str, str],
    x_ticks: Sequence[tuple[float, str]],
) -> str:  # fmt: skip
    is_ratio = y == "perplexity_ratio"
    ringed = front(all_means)
    series = []
    for i, name in enumerate(names):
        dots = [
            _dot(m, x, y, is_ratio=is_ratio, is_ringed=any(m is r for r in ringed))
            for m in sorted((m for m in all_means if m.method == name), key=lambda m: (m.size, m.value))
            if m.get(x) is not None and m.get(y) is not None
        ]
        series.append((f"m{i}", dots))
    y_ticks = [(math.log10(r), f"{r:g}") for r in RATIOS] if is_ratio else SHARES
    chart = scatter_chart(series, label=f"{title}: {axes[1]}", axes=axes, x_ticks=x_ticks, y_ticks=y_ticks)
    return f"<div><h3>{escape(title)}</h3>{chart}</div>"


def _dot(mean: Mean, x: str, y: str, *, is_ratio: bool, is_ringed: bool) -> Dot:
    """A mean in a chart's units; perplexity ratios stand on a logarithmic axis."""
    value, spread = mean.values[y], mean.spreads[y]
    place = math.log10(value) if is_ratio else value
    half = spread / value / math.log(10) if is_ratio else spread
    where = f"{number(mean.values[x], 'ratio')}, {y} {number(value, 'ratio')}"
    title = f"{mean.label}, {mean.size} records, {mean.seeds} seeds: {x} {where}"
    if mean.collapsed:
        title += f"; collapsed: {', '.join(mean.collapsed)}"
    return Dot(mean.values[x], place, title, mean.spreads[x], half, is_ringed, bool(mean.collapsed))


def _table(title: str, all_means: Sequence[Mean], columns: Sequence[Column]) -> str:
    present = [c for c in columns if any(m.get(c[0]) is not None for m in all_means)]
    if not present:
        return ""
    heads = ["method", "records", "seeds", *(c[1] for c in present), ""]
    tips = ["", "Records to be forgotten.", "Trainings.", *(_definition(c[0]) for c in present), ""]
    head = "".join(f'<th title="{escape(t, quote=True)}">{escape(h)}</th>' for h, t in zip(heads, tips, strict=True))
    body = []
    for m in all_means:
        cells = [m.label, str(m.size), str(m.seeds), *(cell(m, c) for c in present), mark := marks(m, all_means)]
        name = ' class="front"' if mark == "front" else ""
        body.append(f"<tr{name}>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>")
    return (
        f'<h2>{escape(title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _definition(name: str) -> str:
    known = {**DERIVED, **AS_PUBLISHED_DEFINITIONS, "cost/seconds": "Wall clock of the training, its looks included.",
             "cost/flops": "2 N a token in a forward pass, 6 N a token in training; N: all parameters."}  # fmt: skip
    return known.get(name) or quantity_definitions(Settings()).get(name.partition("/")[2], "")


def _paper(all_means: Sequence[Mean]) -> str:
    rows = paper_table(all_means)
    lines = ["".join(f"<{tag}>{escape(c)}</{tag}>" for c in row)
             for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)]  # fmt: skip
    return (
        '<h2>The paper\'s layout</h2><p class="soft small">For each number of forget records; every method at its '
        "default. GEN-PPL: the output under the original model. Acc.: next token of held-out text.</p>"
        f'<div class="scroll"><table><thead><tr>{lines[0]}</tr></thead>'
        f"<tbody>{''.join(f'<tr>{x}</tr>' for x in lines[1:])}</tbody></table></div>"
    )


def _notes(points: Sequence[Mapping[str, Any]]) -> str:
    facts = {**{f"collapsed, {name}": rule for name, rule in COLLAPSE_RULES.items()}, **DERIVED}
    for name in ("command", "commit", "python", "torch", "processor", "threads"):
        facts[name] = "; ".join(sorted({str(p["meta"].get(name, "-")) for p in points}))
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<details><summary>Rules, definitions, where it comes from</summary><dl>{lines}</dl></details>"


__all__ = ["render_comparison", "table", "write_pages"]
