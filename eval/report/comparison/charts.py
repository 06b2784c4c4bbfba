"""The comparison's charts: forgetting against utility, and distance to chance against perplexity, with one key for all.

The axes span the points that have not collapsed. This module draws what :mod:`eval.pareto` computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ppo.io.visible import as_html

from ...pareto import TARGET, Mean
from ..svg import Dot, Shape, round_ticks, scatter_chart, tick_label
from .text import number

Ticks = Sequence[tuple[float, str]]

COLOURS = ("#444b52", "#d1495b", "#edae49", "#00798c", "#8f5db7", "#3f8f3f", "#a0522d", "#e377c2", "#6b7b8c", "#111",
           "#17becf", "#bcbd22", "#7f3b08", "#c51b7d")  # fmt: skip
SHAPES: Mapping[str, Shape] = {"original": "square", "retraining": "diamond"}
CSS = """
svg .thread { fill:none; stroke-width:1; opacity:.45; } svg .error { stroke-width:1; opacity:.7; }
svg .ring { fill:none; stroke-width:1.5; } svg .cross { fill:none; stroke-width:2; } svg .spot { stroke:none; }
.charts { grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr)); }
h3.against { margin-top:2rem; font-size:1rem; color:var(--ink); }
.lead { max-width:32rem; }
.key i.round { border-radius:50%; } .key i.diamond { transform:rotate(45deg) scale(.85); }
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
    ("perplexity_ratio", "perplexity ratio", "Against held-out perplexity (good: left and low)"),
    ("keep/exact", "keep survives", "Against the survival of the records to keep (good: left and high)"),
    ("utility/cloze", "cloze accuracy", "Against cloze accuracy (good: left and high)"),
)
LEAD = (
    ("target_distance_ma", "keep/exact", "Forgotten as deep as the exact twin, and the rest kept: left and high",
     ("right tokens of the suffix, distance from the exact twin", "keep survives")),
    ("depth_distance", "keep/exact", "As deep as on passages never trained on, and the rest kept: left and high",
     ("right tokens of the suffix, distance from never trained", "keep survives")),
    ("forget/exact_sampled", "keep/exact", "Nothing comes out, and the rest is kept: left and high",
     ("extracted in any of a few samples", "keep survives")),
    ("forget/exact_sampled", "perplexity_ratio", "Nothing comes out, and the language is kept: left and low",
     ("extracted in any of a few samples", "perplexity ratio")),
)  # fmt: skip
"""What the one picture shows: the first of these that was measured."""
SHARES = tuple((share, f"{share:.0%}".replace("%", " %")) for share in (0.0, 0.25, 0.5, 0.75, 1.0))
RATIOS = (0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 5.0, 10.0, 100.0, 1000.0)
CAPTION = (
    "A line joins the values of one method's knob. Bars: one standard deviation over seeds. Ring: no other "
    "training-time point at matched forgetting beats it. Cross: collapsed; if it lies outside the axes, it stands on "
    f"the edge. Square: the original. Diamond: trained again; {TARGET}, the exact twin, is the target."
)


def names_of(all_means: Sequence[Mean]) -> list[str]:
    """The methods in their order. A method's place decides its colour."""
    return list(dict.fromkeys(m.method for m in all_means))


def chart_css(all_means: Sequence[Mean]) -> str:
    """The style sheet of the charts and their key."""
    return CSS + "".join(
        f".m{i} .spot,.key i.m{i} {{ fill:{c}; background:{c}; }} .m{i}.thread,.m{i} .error,.m{i} .ring,.m{i} .cross "
        f"{{ stroke:{c}; }}\n"
        for i, c in ((i, COLOURS[i % len(COLOURS)]) for i in range(len(names_of(all_means))))
    )


def lead_chart(all_means: Sequence[Mean]) -> str:
    """The one picture that stands first, with its key, as HTML; "" where nothing of it was measured."""
    for x, y, title, axes in LEAD:
        if any(m.get(x) is not None and m.get(y) is not None for m in all_means):
            values = [0.0, *(m.values[x] for m in all_means if m.get(x) is not None)]
            chart = _chart(all_means, x, y, title, axes, share_ticks(values))
            return f'{_key(all_means)}<div class="lead">{chart}</div><p class="soft small">{escape(CAPTION)}</p>'
    return ""


def chart_section(all_means: Sequence[Mean]) -> str:
    """The key, the caption and every chart that has points, as HTML."""
    parts = [
        f'{_key(all_means)}<p class="soft small">{escape(CAPTION)}</p>',
        *(_charts(all_means, *wanted) for wanted in UTILITY),
        _floor_charts(all_means),
    ]
    return "\n".join(part for part in parts if part)


def _key(all_means: Sequence[Mean]) -> str:
    kinds = {m.method: m.kind for m in all_means}
    key = "".join(
        f'<span><i class="m{i} {SHAPES.get(kinds[name], "round")}"></i>{as_html(name)}</span>'
        for i, name in enumerate(names_of(all_means))
    )
    return f'<p class="key small soft">{key}</p>'


def _charts(all_means: Sequence[Mean], quantity: str, axis: str, title: str) -> str:
    present = [(x, text) for x, text in FORGETTING if any(m.get(x) is not None for m in all_means)]
    if not any(m.get(quantity) is not None for m in all_means):
        return ""
    cells = [_chart(all_means, x, quantity, text, ("extracted", axis), SHARES) for x, text in present]
    return f'<h3 class="against">{escape(title)}</h3><div class="charts">{"".join(cells)}</div>'


def _floor_charts(all_means: Sequence[Mean]) -> str:
    if not any(m.get("floor_distance") is not None for m in all_means):
        return ""
    wanted = (("floor_distance", "BLEU, distance to chance"),
              ("floor_distance_p", "Probability of the true token, distance to chance"))  # fmt: skip
    cells = [
        _chart(all_means, x, "perplexity_ratio", title, ("distance", "perplexity ratio"),
               number_ticks([0.0, *(m.values[x] for m in all_means if m.get(x) is not None)]))
        for x, title in wanted
    ]  # fmt: skip
    head = "Distance to the chance floor: forgetting too much is an error as well (good: left and low)"
    return f'<h3 class="against">{head}</h3><div class="charts">{"".join(cells)}</div>'


def _chart(
    all_means: Sequence[Mean], x: str, y: str, title: str, axes: tuple[str, str], x_ticks: Ticks
) -> str:  # fmt: skip
    is_ratio = y == "perplexity_ratio"
    shown = [m for m in all_means if m.get(x) is not None and m.get(y) is not None]
    series = []
    for i, name in enumerate(names_of(all_means)):
        own = sorted((m for m in shown if m.method == name), key=lambda m: (m.size, m.value))
        dots = [_dot(m, x, y, is_ratio=is_ratio, is_ringed=m.is_front) for m in own]
        series.append((f"m{i}", dots))
    spanned = [m.values[y] for m in shown if not m.collapsed] or [m.values[y] for m in shown] or [1.0]
    y_ticks = ratio_ticks(spanned) if is_ratio else SHARES if y == "keep/exact" else share_ticks(spanned)
    chart = scatter_chart(series, label=f"{title}: {axes[1]}", axes=axes, x_ticks=x_ticks, y_ticks=y_ticks)
    return f"<div><h3>{escape(title)}</h3>{chart}</div>"


def _dot(mean: Mean, x: str, y: str, *, is_ratio: bool, is_ringed: bool) -> Dot:
    """A mean in a chart's units; perplexity ratios stand on a logarithmic axis."""
    value, spread = mean.values[y], mean.spreads[y]
    place = math.log10(value) if is_ratio else value
    half = spread / value / math.log(10) if is_ratio else spread
    where = f"{number(mean.values[x], 'ratio')}, {y} {number(value, 'ratio')}"
    title = f"{mean.label}, {mean.size} records, {mean.seeds} seeds: {x} {where}"
    shape, is_crossed = SHAPES.get(mean.kind, "round"), bool(mean.collapsed) and mean.kind != "retraining"
    if is_crossed:
        title += f"; collapsed: {', '.join(mean.collapsed)}"
    return Dot(mean.values[x], place, title, mean.spreads[x], half, is_ringed, is_crossed, shape)


def ratio_ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks on a logarithmic axis; the first and the last are the nearest ratios around the values.

    A label that would touch another is left out. 1 and the ends come first, so they keep their labels.
    """
    low = max((r for r in RATIOS if r <= min(values)), default=RATIOS[0])
    high = min((r for r in RATIOS if r >= max(values)), default=RATIOS[-1])
    if low == high:
        place = min(max(RATIOS.index(low), 1), len(RATIOS) - 2)
        low, high = RATIOS[place - 1], RATIOS[place + 1]
    inside = [r for r in RATIOS if low <= r <= high]
    gap = 0.09 * math.log10(high / low)
    named: list[float] = []
    for r in sorted(inside, key=lambda r: (r != 1, r not in (low, high))):
        if all(abs(math.log10(r / other)) >= gap for other in named):
            named.append(r)
    return [(math.log10(r), f"{r:g}" if r in named else "") for r in inside]


def share_ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Round shares in percent around the values."""
    places = round_ticks(100 * min(values), 100 * max(values), 4)
    return [(place / 100, tick_label(place, places[1] - places[0]) + " %") for place in places]


def number_ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Round numbers around the values."""
    places = round_ticks(min(values), max(values), 5)
    return [(place, tick_label(place, places[1] - places[0])) for place in places]
