"""The report as one HTML page: opens offline, reads on a phone, prints. Everything that is not ours is escaped.

This module knows dicts of numbers and texts; it computes nothing but ratios, and reads and writes no files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .passages import passage_section
from .rows import GLOBAL_ROWS, Row, group_label, groups_of, rows_for
from .style import CSS, SCRIPT
from .svg import bar_chart, line_chart

Evaluated = Mapping[str, Any]
CURVES = (
    ("forget/exact", "Forget: exact extraction"),
    ("forget/bleu", "Forget: BLEU of greedy output"),
    ("forget_holdout/exact", "Forget-holdout: exact extraction"),
    ("keep/exact", "Keep: exact extraction"),
    ("holdout/perplexity", "Held-out perplexity"),
    ("score/mean", "Score, mean"),
    ("kl/per_sequence", "KL to the reference, nats per sequence"),
    ("response/entropy", "Entropy of the sampler, nats per token"),
    ("response/distinct_share", "Share of different responses"),
    ("retain/loss", "Retain loss"),
    ("policy/approx_kl", "Approximate KL of the update, per token"),
    ("value/explained_variance", "Explained variance of the critic"),
)


def render_page(
    *,
    title: str,
    before: Evaluated,
    after: Evaluated | None = None,
    passages: Sequence[Mapping[str, Any]] = (),
    metrics: Sequence[Mapping[str, float]] = (),
    config: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    curves: Sequence[tuple[str, str]] = CURVES,
    most_passages: int = 500,
) -> str:
    """The whole page as a string.

    before, after  dicts as ``Evaluation.to_dict()`` gives them; without ``after`` the page shows one model
    passages       as :func:`eval.report.pair_records` gives them; the first ``most_passages`` are shown
    metrics        rows of metrics.jsonl, each with "step"; ``curves`` names the metrics to draw and their titles
    config, meta   what the run was: its knobs; commit, seed, hardware, command
    """
    numbers = before["summary"], after["summary"] if after else None
    body = [
        f"<h1>{escape(title)}</h1>",
        _lead(*numbers),
        _tiles(*numbers),
        _bars(*numbers),
        _comparison(before, after),
        _curves(metrics, curves),
        passage_section(passages, most=most_passages),
        _definitions(before, after),
        _facts("What was run", {**(meta or {})}),
        _facts("Configuration", {**(config or {})}),
        _facts("Signatures", before["signatures"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def _lead(before: Mapping[str, float], after: Mapping[str, float] | None) -> str:
    count = sum(before[f"{g}/passages"] for g in groups_of(before))
    text = f"{count:.0f} passages in {len(groups_of(before))} groups."
    if after is None:
        text += " One model, before any unlearning."
    elif "forget/exact" in before:
        was, now = 100 * before["forget/exact"], 100 * after["forget/exact"]
        text += f" Greedy decoding reproduces {was:.1f} % of the forget set before and {now:.1f} % after unlearning."
    text += (
        " Intervals are 95 % bootstrap intervals over passages; each number is defined where you point at its label."
    )
    return f'<p class="soft">{escape(text)}</p>'


def _tiles(before: Mapping[str, float], after: Mapping[str, float] | None) -> str:
    """The numbers that a run is judged by."""
    tiles = []
    for name, label in (
        ("forget/exact", "forget set extracted"),
        ("forget_holdout/exact", "forget-holdout extracted"),
        ("keep/exact", "keep set extracted"),
        ("forget/bleu", "BLEU on the forget set"),
    ):
        if name in before:
            row = Row(name, label, "score" if name.endswith("bleu") else "share", "")
            tiles.append(_tile(row.text(before[name]), row.text(after.get(name)) if after else None, label))
    name = "holdout/perplexity"
    if name in before:
        if after is not None and name in after:
            tiles.append(_tile(None, f"\N{MULTIPLICATION SIGN}{after[name] / before[name]:.3f}", "held-out perplexity"))
        else:
            tiles.append(_tile(f"{before[name]:.2f}", None, "held-out perplexity"))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _tile(before: str | None, after: str | None, label: str) -> str:
    if before is not None and after is not None:
        value = f'<span class="was">{escape(before)} &rarr;</span> {escape(after)}'
    else:
        value = escape(after if before is None else before)
    return f'<div class="tile"><b>{value}</b><span>{escape(label)}</span></div>'


def _bars(before: Mapping[str, float], after: Mapping[str, float] | None) -> str:
    groups = groups_of(before)

    def bars(quantity: str, factor: float) -> list[tuple[str, float, float | None]]:
        return [
            (
                group_label(g),
                factor * before[f"{g}/{quantity}"],
                factor * after[f"{g}/{quantity}"] if after and f"{g}/{quantity}" in after else None,
            )
            for g in groups
            if f"{g}/{quantity}" in before
        ]

    floor = before.get("never/bleu")
    charts = [
        ("Exact extraction, %", bar_chart(bars("exact", 100), label="Exact extraction by group", top=100)),
        (
            "BLEU of greedy output",
            bar_chart(
                bars("bleu", 1),
                label="BLEU by group",
                top=100,
                mark=(floor, f"chance floor {floor:.0f}") if floor is not None else None,
            ),
        ),
    ]
    key = '<p class="key small soft"><i class="b"></i>before<i class="a"></i>after</p>' if after else ""
    return f"<h2>How much comes out</h2>{key}{_grid(charts)}"


def _grid(charts: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<div><h3>{escape(title)}</h3>{chart}</div>" for title, chart in charts)
    return f'<div class="charts">{cells}</div>'


def _comparison(before: Evaluated, after: Evaluated | None) -> str:
    groups = groups_of(before["summary"])
    head = "".join(
        f'<th>{escape(group_label(g))}<br><span class="soft">n = {before["summary"][f"{g}/passages"]:.0f}</span></th>'
        for g in groups
    )
    lines, section = [], ""
    for row in rows_for(list(before["summary"])):
        if row.section != section:
            section = row.section
            lines.append(f'<tr class="section"><td colspan="{len(groups) + 1}">{escape(section)}</td></tr>')
        names = [f"{g}/{row.quantity}" for g in groups]
        lines.append(_line(row, names, before, after))
    wide = [row for row in GLOBAL_ROWS if row.quantity in before["summary"]]
    for row in wide:
        if row.section != section:
            section = row.section
            lines.append(f'<tr class="section"><td colspan="{len(groups) + 1}">{escape(section)}</td></tr>')
        lines.append(_line(row, [row.quantity], before, after))
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<h2>Every number</h2><div class="scroll"><table>{table}</table></div>'


def _line(row: Row, names: Sequence[str], before: Evaluated, after: Evaluated | None) -> str:
    definition = next((before["definitions"][n] for n in names if n in before["definitions"]), "")
    if len(names) > 1:
        definition = definition.partition(": ")[2]
    cells = "".join(f"<td>{_cell(row, name, before, after)}</td>" for name in names)
    return f'<tr><td title="{escape(definition, quote=True)}">{escape(row.label)}</td>{cells}</tr>'


def _cell(row: Row, name: str, before: Evaluated, after: Evaluated | None) -> str:
    shown = before if after is None else after
    text = escape(row.text(shown["summary"].get(name)))
    if after is not None:
        was = escape(row.text(before["summary"].get(name)))
        text = f'<span class="was">{was}</span> <span class="arrow">&rarr;</span> {text}'
    interval = shown["intervals"].get(name)
    if interval is not None:
        low, high = (row.text(x).removesuffix(" %") for x in interval)
        text += f'<span class="range">{escape(low)} &ndash; {escape(high)}</span>'
    return text


def _curves(metrics: Sequence[Mapping[str, float]], curves: Sequence[tuple[str, str]]) -> str:
    charts = []
    for name, title in curves:
        points = [(float(m["step"]), float(m[name])) for m in metrics if "step" in m and _is_finite(m.get(name))]
        if points:
            charts.append((title, line_chart(points, label=title)))
    if not charts:
        return ""
    return (
        f'<h2>Training</h2><p class="soft small">Over steps; one step is one rollout and its update.</p>{_grid(charts)}'
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _definitions(before: Evaluated, after: Evaluated | None) -> str:
    found: dict[str, str] = {}
    for name, text in {**before["definitions"], **(after["definitions"] if after else {})}.items():
        area, _, quantity = name.partition("/")
        if f"{area}/passages" in before["summary"]:
            found.setdefault(quantity, text.partition(": ")[2])
        else:
            found[name] = text
    return _facts("Definitions", found)


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    """A folded list of names and values."""
    if not facts:
        return ""
    lines = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in facts.items())
    return f"<details><summary>{escape(title)}</summary><dl>{lines}</dl></details>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
