"""Small charts as SVG text: lines over steps, pairs of bars, scatter charts.

Colours and fonts come from the page's style sheet. This module knows numbers and labels, and escapes every label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ppo.io.visible import as_attribute

Point = tuple[float, float]
Shape = Literal["round", "square", "diamond"]

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 26


def line_chart(points: Sequence[Point], *, label: str) -> str:
    """One series over steps. ``points``: at least one (step, value), with finite values."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = round_ticks(min(xs), max(xs), 4, is_whole=True), round_ticks(min(ys), max(ys), 4)
    names = [tick_label(tick, y_ticks[1] - y_ticks[0]) for tick in y_ticks]
    left = _left(names)
    x_range = (min(xs), max(max(xs), min(xs) + 1))
    y_range = (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)))

    def place(x: float, y: float) -> tuple[float, float]:
        return _scale(x, x_range, left, WIDTH - RIGHT), _scale(y, y_range, HEIGHT - BOTTOM, TOP)

    parts = [_open(WIDTH, HEIGHT, f"{label}, {_number(ys[0])} at step {xs[0]:g} to {_number(ys[-1])} at {xs[-1]:g}")]
    for tick, name in zip(y_ticks, names, strict=True):
        y = place(xs[0], tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, name, "end"))
    for tick in x_ticks:
        if x_range[0] <= tick <= x_range[1]:
            parts.append(_text(place(tick, ys[0])[0], HEIGHT - 8, f"{tick:g}", "middle"))
    placed = [place(x, y) for x, y in points]
    if len(placed) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="line" points="{path}"/>')
    radius = 2.5 if len(placed) <= 40 else 1.2
    parts += [
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>step {a:g}: {_number(b)}</title></circle>'
        for (x, y), (a, b) in zip(placed, points, strict=True)
    ]
    return "".join([*parts, "</svg>"])


def bar_chart(
    bars: Sequence[tuple[str, float, float | None]],
    *,
    label: str,
    top: float,
    unit: str = "",
    mark: tuple[float, str] | None = None,
) -> str:
    """Horizontal bars for each (label, before, after), the bar of before above that of after. ``after`` may be None.

    ``top``: the value at the right end. ``mark``: the value and the label of a dashed line.
    """
    left, right, step = 108, 64, 46
    height = step * len(bars) + (24 if mark else 6)
    parts = [_open(WIDTH, height, label)]

    def bar(value: float, y: float, name: str) -> str:
        width = _scale(min(max(value, 0), top), (0, top), 0, WIDTH - left - right)
        shape = f'<rect class="{name}" x="{left}" y="{y}" width="{max(width, 1):.1f}" height="15" rx="2"/>'
        return shape + _text(left + max(width, 1) + 6, y + 12, f"{value:.1f}{unit}", "start", f"value {name}-text")

    for i, (name, before, after) in enumerate(bars):
        y = i * step + 4
        parts.append(_text(left - 8, y + (20 if after is not None else 12), name, "end", "name"))
        parts.append(bar(before, y, "before"))
        if after is not None:
            parts.append(bar(after, y + 17, "after"))
    if mark is not None:
        x = left + _scale(min(max(mark[0], 0), top), (0, top), 0, WIDTH - left - right)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20}"/>')
        parts.append(_text(x, height - 6, mark[1], "middle"))
    return "".join([*parts, "</svg>"])


def curves_chart(
    series: Sequence[tuple[str, str, Sequence[float]]], *, label: str, axes: tuple[str, str], width: int = 720
) -> str:
    """Shares over the places 1, 2, …: a line for each (class name, label, shares of 0 to 1).

    Pointing at a place of a line shows its share. The description in words has each line's start, middle and end.
    """
    height, top, left = 250, 26, _left(["100 %"])
    last = max(max(len(values) for _, _, values in series), 2)

    def at(place: float, share: float) -> tuple[float, float]:
        return _scale(place, (1, last), left + 8, width - RIGHT), _scale(share, (0, 1), height - 40, top)

    told = "; ".join(f"{name}: {_ends(values)}" for _, name, values in series)
    parts = [_open(width, height, label), f"<desc>{as_attribute(f'{axes[1]} over {axes[0]}. {told}')}</desc>"]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = at(1, share)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{100 * share:.0f} %", "end"))
    ticks = [1, *(tick for tick in round_ticks(0, last, 8, is_whole=True) if 1 < tick <= last)]
    parts += [_text(at(tick, 0)[0], height - 24, f"{tick:g}", "middle") for tick in ticks]
    parts.append(_text((left + width - RIGHT) / 2, height - 7, axes[0], "middle"))
    parts.append(_text(left - 40, 11, axes[1], "start"))
    for kind, name, values in series:
        spots = [at(place, share) for place, share in enumerate(values, start=1)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline class="thread {kind}" points="{path}"/>')
        parts += [
            f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{as_attribute(name)}, token {place}: '
            f"{100 * share:.1f} %</title></circle>"
            for place, ((x, y), share) in enumerate(zip(spots, values, strict=True), start=1)
        ]
    return "".join([*parts, "</svg>"])


def _ends(values: Sequence[float]) -> str:
    """A curve in words: its first, middle and last share."""
    places = sorted({1, (len(values) + 1) // 2, len(values)})
    return ", ".join(f"{100 * values[place - 1]:.1f} % at {place}" for place in places)


@dataclass(frozen=True)
class Dot:
    """One mark of a scatter chart, in the units of the axes.

    ``title``: the text shown on pointing at it. ``dx``, ``dy``: half the width and height of its error bars. A ring
    marks a dot that no other beats, a cross one that has collapsed.
    """

    x: float
    y: float
    title: str
    dx: float = 0.0
    dy: float = 0.0
    is_ringed: bool = False
    is_crossed: bool = False
    shape: Shape = "round"


def scatter_chart(
    series: Sequence[tuple[str, Sequence[Dot]]],
    *,
    label: str,
    axes: tuple[str, str],
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
) -> str:
    """Dots of several series, with error bars. A series is (class name, dots); a thin line joins its dots in order.

    The ticks, (place, label), span the chart. A dot outside is drawn at the edge, and its title gives its true place.
    """
    height, top = 240, 26  # leaves room for the name of the vertical axis above the chart
    left = _left([name for _, name in y_ticks])
    x_range, y_range = (x_ticks[0][0], x_ticks[-1][0]), (y_ticks[0][0], y_ticks[-1][0])

    def place(x: float, y: float) -> tuple[float, float]:
        x, y = (min(max(v, low), high) for v, (low, high) in ((x, x_range), (y, y_range)))
        return _scale(x, x_range, left + 10, WIDTH - RIGHT), _scale(y, y_range, height - 40, top)

    parts = [_open(WIDTH, height, label)]
    for value, name in y_ticks:
        y = place(x_range[0], value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, name, "end"))
    parts += [_text(place(value, y_range[0])[0], height - 24, name, "middle") for value, name in x_ticks]
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 7, axes[0], "middle"))
    parts.append(_text(left - 40, 11, axes[1], "start"))
    for name, dots in series:
        if len(dots) > 1:
            path = " ".join("{:.1f},{:.1f}".format(*place(d.x, d.y)) for d in dots)
            parts.append(f'<polyline class="thread {name}" points="{path}"/>')
        parts += [_dot(name, d, place(d.x - d.dx, d.y - d.dy), place(d.x, d.y), place(d.x + d.dx, d.y + d.dy))
                  for d in dots]  # fmt: skip
    return "".join([*parts, "</svg>"])


def _dot(name: str, dot: Dot, low: Point, middle: Point, high: Point) -> str:
    x, y = middle
    parts = [f'<g class="{name}"><title>{as_attribute(dot.title)}</title>']
    if dot.dx:
        parts.append(f'<line class="error" x1="{low[0]:.1f}" x2="{high[0]:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if dot.dy:
        parts.append(f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{low[1]:.1f}" y2="{high[1]:.1f}"/>')
    if dot.is_ringed:
        parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    if dot.is_crossed:
        cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        parts.append(f'<path class="cross" d="{cross}"/>')
    else:
        parts.append(_spot(x, y, dot.shape))
    return "".join([*parts, "</g>"])


def _spot(x: float, y: float, shape: Shape) -> str:
    if shape == "round":
        return f'<circle class="spot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    path = "-4.5 -4.5h9v9h-9z" if shape == "square" else "0 -6l6 6l-6 6l-6 -6z"
    return f'<path class="spot" d="M{x:.1f} {y:.1f}m{path}"/>'


def _open(width: int, height: int, label: str) -> str:
    name = as_attribute(label)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}"><title>{name}</title>'


def _text(x: float, y: float, text: str, anchor: str, name: str = "tick") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{as_attribute(text)}</text>'


def _left(names: Sequence[str]) -> float:
    """Where a chart begins, so that the longest label of its vertical axis fits to the left of it."""
    return max(LEFT, 10 + 7 * max(map(len, names)))


def _scale(value: float, source: tuple[float, float], start: float, end: float) -> float:
    low, high = source
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _number(value: float) -> str:
    """Three significant digits, no trailing zeros."""
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.2e}"


def tick_label(tick: float, step: float) -> str:
    """The tick with just enough decimals to differ from its neighbours."""
    if max(abs(tick), step) >= 1e4:
        return f"{tick:.2e}"
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def round_ticks(low: float, high: float, count: int, *, is_whole: bool = False) -> list[float]:
    """About ``count`` round numbers that cover ``low`` to ``high``, in steps of 1, 2 or 5 times a power of ten."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = max(abs(high) * 0.1, 0.5)
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if raw <= m * power * 1.0001)
    if is_whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
