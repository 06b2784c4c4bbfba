"""How deep the forgetting goes, as HTML: forget beside never trained and their difference, and two curves.

The curves are exact extraction over the number of true tokens shown, and leak@k over the number of samples. This module
knows names of metrics and numbers; what they mean is in :mod:`eval.depth`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ppo.io.plain import finite
from ppo.io.visible import as_html

from ..depth import AREA, told_apart
from .along import along_chart
from .rows import Row, group_label, rows_for
from .svg import Dot, scatter_chart
from .terms import Terms

Evaluated = Mapping[str, Any]
_SERIES = (("before", "forget"), ("after", "forget"), ("never", "never"))
_HINT, _LEAK, _NEAR = (re.compile(rf"{name}_([0-9]{{1,9}})") for name in ("exact_after", "leak", "near_leak"))
_SHARES = tuple((share, f"{share:.0%}".replace("%", " %")) for share in (0.0, 0.25, 0.5, 0.75, 1.0))


def depth_section(before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    """The table and the curves, or "" where forget and never trained were not both measured."""
    table = _table(before, after, terms)
    if not table:
        return ""
    return (
        '<p class="soft small">What the model still knows with the true tokens before it. The target is what '
        "the same model does on passages that it never saw: a difference of 0.</p>"
        f"<p>{as_html(told(before if after is None else after))}</p>"
        f"{table}{along_chart(before, after, terms)}{_charts(before, after, terms)}"
    )


def told(shown: Evaluated) -> str:
    """Which numbers still tell the forget set from passages that the model never saw, as a sentence; "" without any."""
    found, count = told_apart(shown["intervals"])
    if not count:
        return ""
    labels = [row.label for row in rows_for([f"{AREA}/{name}" for name in found]) if row.quantity in found]
    main = [label for label in labels if not label.startswith("…")]  # the others say more of the one before
    which, tell = (str(len(found)), "tell") if len(found) > 1 else ("One" if found else "None", "tells")
    return (
        f"{which} of {count} numbers {tell} the forget set from passages that the model never saw, each at 95 %"
        f"{_listed(main, len(found))}."
    )


def _listed(labels: Sequence[str], count: int) -> str:
    """The names of some of ``count`` numbers behind a sentence; rows that say more of one of them have no name here."""
    if not labels:
        return ""
    return f"{':' if len(labels) == count else ', among them'} {'; '.join(labels)}"


def _table(before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    shown = before if after is None else after
    names = [name for name in shown["summary"] if name.startswith("depth/")]
    if not names:
        return ""
    heads = ["forget", "never trained", "difference", *([] if after is None else ["before unlearning"])]
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    lines = []
    for row in rows_for(names):
        if f"depth/{row.quantity}" not in names:
            continue
        cells = [_cell(row, f"{area}/{row.quantity}", shown) for area in ("forget", "never", "depth")]
        cells += [] if after is None else [_cell(row, f"depth/{row.quantity}", before)]
        body = "".join(f"<td{terms.mark(row.quantity)}>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{terms.label(row.label, row.quantity)}</th>{body}</tr>')
    return (
        '<div class="scroll" role="region" aria-label="Depth" tabindex="0"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(row: Row, name: str, shown: Evaluated) -> str:
    text, interval = as_html(row.text(shown["summary"].get(name))), shown["intervals"].get(name)
    if interval is None:
        return text
    low, high = (as_html(row.text(end).removesuffix(" %")) for end in interval)
    return f'{text}<span class="range" data-def="interval">{low} &ndash; {high}</span>'


def _charts(before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    sides = {"before": before["summary"], "after": (after or {}).get("summary")}
    sides["never"] = sides["after"] or sides["before"]
    curves = [(name, group, side) for name, group in _SERIES if (side := sides[name]) is not None]
    hints = [(name, _points(side, group, _HINT, "exact", 0)) for name, group, side in curves]
    leaks, near = (
        [
            (name, [(math.log10(k), y) for k, y in _points(side, group, pattern, first, 1)])
            for name, group, side in curves
        ]
        for pattern, first in ((_LEAK, "sequence_p"), (_NEAR, "near_p"))
    )
    shown = [
        (
            "exact",
            "Exact extraction after true tokens",
            _chart(hints, ("true tokens shown", "extracted"), is_log=False),
        ),
        ("sequence_p", "Expected to leak in k samples", _chart(leaks, ("samples", "leaked"), is_log=True)),
        ("near_p", "… but for a few tokens, at least", _chart(near, ("samples", "leaked"), is_log=True)),
    ]
    cells = "".join(
        f"<div{terms.mark(name)}><h3>{terms.label(title, name)}</h3>{chart}</div>"
        for name, title, chart in shown
        if chart
    )
    labels = {"before": f"{group_label('forget')}, before", "after": f"{group_label('forget')}, after"}
    if after is None:
        labels["before"] = group_label("forget")
    key = "".join(f'<span><i class="{n[0]}"></i>{labels.get(n, group_label(n))}</span>' for n, _, _ in curves)
    return f'<p class="key small soft">{key}</p><div class="charts wide">{cells}</div>' if cells else ""


def _points(
    summary: Mapping[str, float], group: str, pattern: re.Pattern[str], first: str, start: int
) -> list[tuple[float, float]]:
    """The points of a curve: the quantity ``first`` at ``start``, then those whose names match, by their number."""
    found = {start: summary.get(f"{group}/{first}")}
    for name, value in summary.items():
        area, _, quantity = name.partition("/")
        if area == group and (match := pattern.fullmatch(quantity)):
            found[int(match.group(1))] = value
    return [(float(k), float(y)) for k, y in sorted(found.items()) if finite(y) is not None and y is not None]


def _short(count: float) -> str:
    """A number that fits below a chart: 100000 -> 100k."""
    return f"{count / 1000:.0f}k" if count > 999.5 else f"{count:.0f}"


def _chart(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], axes: tuple[str, str], *, is_log: bool) -> str:
    """A line for each series, or "" where none has two points."""
    series = [(name, points) for name, points in series if len(points) > 1]
    if not series:
        return ""
    xs = sorted({x for _, points in series for x, _ in points})
    names = [_short(10**x) if is_log else f"{x:.0f}" for x in xs]
    gaps = [math.inf, *((b - a) / (xs[-1] - xs[0]) for a, b in pairwise(xs))]
    ticks = [(x, name if gap > 0.1 else "") for x, name, gap in zip(xs, names, gaps, strict=True)]

    def dot(x: float, y: float, name: str) -> Dot:
        return Dot(x, y, f"{name}, {axes[0]} {10**x if is_log else x:,.0f}: {100 * y:.2g} %")

    dots = [(name, [dot(x, y, name) for x, y in points]) for name, points in series]
    return scatter_chart(dots, label=f"{axes[1]} over {axes[0]}", axes=axes, x_ticks=ticks, y_ticks=_SHARES)
