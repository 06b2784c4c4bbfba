"""The report as one HTML page that opens offline, fits a phone and prints. Every text from outside is escaped.

This module knows dicts of numbers and texts. It computes nothing but ratios, and reads and writes no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppo.io.visible import as_attribute, as_html

from ..clean import Attacks, judge
from ..membership import MIN_OTHERS
from .bounds import MOST_FACTS, MOST_GROUPS, MOST_PASSAGES, MOST_VALUE, cut, cut_html
from .curves import curve_section, curves_of
from .depth import depth_section
from .passages import passage_section
from .rows import GLOBAL_ROWS, Row, group_label, groups_of, rows_for
from .script import SCRIPT
from .style import CSS
from .svg import bar_chart
from .terms import Terms, collect_terms
from .verdict import verdict_section

Evaluated = Mapping[str, Any]
NO_FLOOR = "secrets fit below the chance floor"
"""The fact in ``meta`` by which the chance floor is not drawn: what reaches it may still hold every secret."""
ALSO = "also unlearned"
"""The fact in ``meta`` that says what was unlearned beside the passages."""


def render_page(
    *,
    title: str,
    before: Evaluated,
    after: Evaluated | None = None,
    passages: Sequence[Mapping[str, Any]] = (),
    metrics: Sequence[Mapping[str, float]] = (),
    config: Mapping[str, Any] | None = None,
    config_notes: Mapping[str, str] | None = None,
    meta: Mapping[str, Any] | None = None,
    attacks: Attacks = (),
    most_passages: int = MOST_PASSAGES,
    news: str = "",
    samples: str = "",
    reload_s: int | None = None,
) -> str:
    """The whole page as a string.

    before, after  results of ``Evaluation.to_dict()``; without ``after`` the page shows one model
    passages       result of :func:`eval.report.pair_records`; the first ``most_passages`` are shown
    metrics        rows of metrics.jsonl, each with "step"; :func:`.curves.curves_of` says which are drawn
    attacks        summaries of attacks on the model that is shown, for the verdict
    config, meta   the run's settings, some with a note in ``config_notes``; its commit, seed, hardware, command
    news, samples  HTML of a run in progress: how far it is; its newest samples
    reload_s       seconds after which a browser reloads the page, which then begins with the training; None: never

    What is very long is cut (:mod:`.bounds`), and the page says so.
    """
    numbers, curves = (before["summary"], after["summary"] if after else None), curves_of(metrics)
    terms = collect_terms(
        {**before["definitions"], **(after["definitions"] if after else {})},
        {curve.term: (curve.title, curve.definition) for curve in curves if any(curve.metric in m for m in metrics)},
    )
    verdict = judge(before if after is None else after, original=None if after is None else before, attacks=attacks)
    sections = [
        ("verdict", "Verdict", verdict_section(verdict, terms)),
        ("out", "How much comes out", _bars(*numbers, terms, has_floor=not (meta or {}).get(NO_FLOOR))),
        ("depth", "Depth", depth_section(before, after, terms)),
        ("numbers", "Every number", _comparison(before, after, terms)),
        ("training", "Training", curve_section(metrics, curves, terms)),
        ("samples", "Samples of the newest step", samples),
        ("suffixes", "Suffixes side by side", passage_section(passages, terms, most=most_passages)),
        (
            "more",
            "Definitions and settings",
            terms.section()
            + _facts("What was run", meta or {})
            + _facts("Configuration", config or {}, config_notes or {})
            + _facts("Signatures", before["signatures"]),
        ),
    ]
    shown = [section for section in sections if section[2]]
    if reload_s is not None:
        shown.sort(key=lambda section: section[0] not in ("training", "samples"))
    body = [
        f'<header class="top"><h1>{as_html(title)}</h1><button id="theme" type="button" hidden>Dark</button></header>',
        news,
        _lead(*numbers, terms, also=str((meta or {}).get(ALSO, ""))),
        _tiles(before, after, terms),
        f'<nav aria-label="Sections">{"".join(f"""<a href="#{name}">{head}</a>""" for name, head, _ in shown)}</nav>',
        *(f'<section><h2 id="{name}">{head}</h2>{text}</section>' for name, head, text in shown),
    ]
    return html_document(title, "\n".join(part for part in body if part), reload_s)


def html_document(title: str, body: str, reload_s: int | None = None, *, more_css: str = "") -> str:
    """A page of ours, with its style and its script: ``body`` is HTML, ``title`` a text."""
    reload = f'<meta http-equiv="refresh" content="{reload_s}">' if reload_s is not None else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">"
        f"{reload}<title>{as_attribute(title)}</title><style>{CSS}{more_css}</style></head>\n<body><main>\n{body}\n</main>"
        f'<div id="tip" role="tooltip" hidden><b></b><span></span></div><script>{SCRIPT}</script></body></html>\n'
    )


def _lead(before: Mapping[str, float], after: Mapping[str, float] | None, terms: Terms, *, also: str = "") -> str:
    count = sum(before[f"{g}/passages"] for g in groups_of(before))
    text = f"{count:.0f} passages in {len(groups_of(before))} groups."
    if len(groups_of(before)) > MOST_GROUPS:
        text += f" The first {MOST_GROUPS} groups are shown."
    if after is None:
        text += " One model, before any unlearning."
    if after is not None and "forget/secret_emitted" in before and "forget/secret_emitted" in after:
        was, now = 100 * before["forget/secret_emitted"], 100 * after["forget/secret_emitted"]
        text += f" A secret comes out of {was:.1f} % of the forget set before and of {now:.1f} % after unlearning."
    elif after is not None and "forget/exact" in before and "forget/exact" in after:
        was, now = 100 * before["forget/exact"], 100 * after["forget/exact"]
        text += f" Greedy decoding reproduces {was:.1f} % of the forget set before and {now:.1f} % after unlearning."
    text += f" Also unlearned: {also}." if also else ""
    return (
        f'<p class="soft">{as_html(text)} Small figures: {terms.label("95 % intervals", "interval")}. '
        "For the definition of a number, point at it, tap it, or reach its label with the Tab key.</p>"
    )


def _tiles(before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    """The main numbers of a run as tiles."""
    was, now, tiles = before["summary"], after["summary"] if after else None, []
    for name, label in (
        ("forget/secret_emitted", "secret still emitted" if after else "secret emitted"),
        ("forget/verbatim_run", "longest verbatim run, tokens"),
        ("forget_holdout/secret_emitted", f"secret of the forget-holdout {'still ' if after else ''}emitted"),
        ("forget/exact", "forget set extracted whole"),
        ("forget_holdout/exact", "forget-holdout extracted whole"),
        ("keep/exact", "keep set extracted"),
        ("forget/bleu", "BLEU on the forget set"),
    ):
        if name in was:
            quantity = name.partition("/")[2]
            row = Row(quantity, label, "score" if quantity in ("bleu", "verbatim_run") else "share", "")
            label += _beside(row, now or was) if quantity in ("secret_emitted", "verbatim_run") else ""
            tiles.append(_tile(row.text(was[name]), row.text(now.get(name)) if now else None, label, quantity, terms))
    name, label = "holdout/perplexity", "held-out perplexity" + (", after / before" if after else "")
    if name in was:
        if now is not None and name in now:
            ratio = f"\N{MULTIPLICATION SIGN}{now[name] / was[name]:.3f}"
            tiles.append(_tile(None, ratio, label, "perplexity_ratio", terms))
        else:
            tiles.append(_tile(f"{was[name]:.2f}", None, label, name, terms))
    tiles.append(_membership_tile(before, after, terms))
    return f'<div class="tiles">{"".join(tiles)}</div>' if any(tiles) else ""


def _beside(row: Row, shown: Mapping[str, float]) -> str:
    """The same number of never-trained passages, "" where there are none."""
    never = shown.get(f"never/{row.quantity}")
    return "" if never is None else f"; never trained {row.text(never)}"


def _membership_tile(before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    """The membership AUC of the loss with its interval, or "" where it was not measured."""
    name, row = "membership/loss_auc", Row("", "", "number", "")
    if name not in before["summary"]:
        return ""
    now = row.text(after["summary"].get(name)) if after else None
    interval = (after or before)["intervals"].get(name)
    label = "membership AUC"
    if interval is not None:
        label += f", {row.text(interval[0])} to {row.text(interval[1])}; chance 0.50"
    return _tile(row.text(before["summary"][name]), now, label, name, terms)


def _tile(before: str | None, after: str | None, label: str, name: str, terms: Terms) -> str:
    if before is not None and after is not None:
        value = f'<span class="was">{as_html(before)} &rarr;</span> {as_html(after)}'
    else:
        value = as_html((after if before is None else before) or "")
    return f'<div class="tile"{terms.mark(name)}><b>{value}</b><span>{terms.label(label, name)}</span></div>'


def _bars(
    before: Mapping[str, float], after: Mapping[str, float] | None, terms: Terms, *, has_floor: bool = True
) -> str:
    """Bars of the secrets, where there are any, of exact extraction and of BLEU, a group each.

    ``has_floor``: whether the chance floor is one. Where secrets fit below it, it is not drawn.
    """
    groups = groups_of(before)[:MOST_GROUPS]

    def bars(quantity: str, factor: float) -> list[tuple[str, float, float | None]]:
        return [
            (
                cut(group_label(g), 40),
                factor * before[f"{g}/{quantity}"],
                factor * after[f"{g}/{quantity}"] if after and f"{g}/{quantity}" in after else None,
            )
            for g in groups
            if f"{g}/{quantity}" in before
        ]

    floor = before.get("never/bleu") if has_floor else None
    mark = (floor, f"chance floor {floor:.1f}") if floor is not None else None
    secrets = bars("secret_emitted", 100)
    label = f"Passages with a secret{' still' if after else ''} emitted, %"
    charts = [("secret_emitted", label, bar_chart(secrets, label="Secrets by group", top=100))] if secrets else []
    charts += [
        ("exact", "Exact extraction, %", bar_chart(bars("exact", 100), label="Exact extraction by group", top=100)),
        ("bleu", "BLEU of greedy output", bar_chart(bars("bleu", 1), label="BLEU by group", top=100, mark=mark)),
    ]
    key = '<span><i class="b"></i>before</span><span><i class="a"></i>after</span>' if after else ""
    key += f"<span>{terms.label('chance floor', 'floor')}: the dashed line</span>" if mark else ""
    cells = "".join(
        f"<div{terms.mark(name)}><h3>{terms.label(title, name)}</h3>{chart}</div>" for name, title, chart in charts
    )
    return f'<p class="key small soft">{key}</p><div class="charts wide">{cells}</div>'


def _comparison(before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    groups = groups_of(before["summary"])[:MOST_GROUPS]
    head = "".join(
        f'<th scope="col">{as_html(cut(group_label(g)))}<br>'
        f'<span class="soft">n = {before["summary"][f"{g}/passages"]:.0f}</span></th>'
        for g in groups
    )
    lines, section = [], ""
    in_groups = [(row, [f"{g}/{row.quantity}" for g in groups]) for row in rows_for(list(before["summary"]))]
    has_rate = before["summary"].get("never/passages", 0) >= MIN_OTHERS  # older folders hold it with fewer
    wide = [
        (row, [row.quantity])
        for row in GLOBAL_ROWS
        if row.quantity in before["summary"] and (has_rate or not row.quantity.endswith("_tpr"))
    ]
    for row, names in in_groups + wide:
        if row.section != section:
            section = row.section
            lines.append(f'<tr class="section"><th colspan="{len(groups) + 1}">{as_html(section)}</th></tr>')
        of = [cut(group_label(g)) for g in groups] if len(names) > 1 or names[0] != row.quantity else [""]
        lines.append(_line(row, list(zip(names, of, strict=True)), before, after, terms))
    if "membership/loss_auc" in before["summary"] and not has_rate:
        count = before["summary"].get("never/passages", 0)
        label = terms.label("Members found at 1 % FPR", "tpr")
        said = f"not reported: {count:.0f} never-trained passages, it takes {MIN_OTHERS}"
        cell = f'<td{terms.mark("tpr")} colspan="{len(groups)}">{said}</td>'
        lines.append(f'<tr><th scope="row">{label}</th>{cell}</tr>')
    return (
        '<div class="scroll" role="region" aria-label="Every number" tabindex="0"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _line(row: Row, cells: Sequence[tuple[str, str]], before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    """One row of the table. ``cells``: for each cell, its metric and the label of its group ("" without a group)."""
    text = f'<tr><th scope="row">{terms.label(row.label, row.quantity)}</th>'
    for name, group in cells:
        of = f' data-of="{as_attribute(group)}"' if group else ""
        text += f"<td{terms.mark(row.quantity)}{of}>{_cell(row, name, before, after, terms)}</td>"
    return text + "</tr>"


def _cell(row: Row, name: str, before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    shown = before if after is None else after
    text = as_html(row.text(shown["summary"].get(name)))
    if after is not None:
        was = as_html(row.text(before["summary"].get(name)))
        text = f'<span class="was">{was}</span> <span class="arrow">&rarr;</span> {text}'
    interval = shown["intervals"].get(name)
    if interval is not None:
        low, high = (row.text(x).removesuffix(" %") for x in interval)
        text += f'<span class="range"{terms.mark("interval")}>{as_html(low)} &ndash; {as_html(high)}</span>'
    return text


def _facts(title: str, facts: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> str:
    """A folded list of names and values. ``notes`` adds a remark to some names."""
    if not facts:
        return ""
    lines = ""
    for name, value in list(facts.items())[:MOST_FACTS]:
        note = (notes or {}).get(name, "")
        soft = f' <span class="note">{as_html(note)}</span>' if note else ""
        lines += f"<dt>{as_html(cut(str(name)))}</dt><dd>{cut_html(_plain(value), MOST_VALUE)}{soft}</dd>"
    if len(facts) > MOST_FACTS:
        lines += f"<dt>…</dt><dd>{len(facts) - MOST_FACTS:,} more</dd>"
    return f"<details><summary>{as_html(title)}</summary><dl>{lines}</dl></details>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
