"""How the pictures are drawn: a panel a quantity, a line a method, the spread over the seeds (matplotlib).

The background is light. Marks and line styles, not colours, tell things apart, so that a picture prints in grey. This
module knows no points and no methods: :mod:`benchmarks.plots` decides what is drawn.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 110  # inches, dots an inch: as wide as a README shows
INK, SOFT, GRID = "#1a1a1a", "#8a8a8a", "#ececec"
LEFT, RIGHT = "\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"
BETTER = {"less": f" {LEFT}", "more": f" {RIGHT}", "": ""}
IS_BETTER = f"{LEFT} less, {RIGHT} more is better"


@dataclass(frozen=True)
class Panel:
    """A quantity and its title; a share goes from 0 to 100 %. ``better``: which values are better, "" for neither.

    ``line``: the value at which a dashed line stands; None for no line. ``width``: relative to the other panels.
    """

    quantity: str
    title: str
    better: Literal["less", "more", ""]
    is_share: bool = False
    line: float | None = None
    width: float = 1.0

    @property
    def heading(self) -> str:
        """The title with an arrow towards better values."""
        return self.title + BETTER[self.better]


@dataclass(frozen=True)
class Line:
    """What a picture shows of one method or variant: each quantity's values over the seeds.

    ``paths``: quantities that were measured several times, in the order of time.
    """

    label: str
    values: Mapping[str, Sequence[float]]
    is_collapsed: bool = False
    is_ours: bool = False
    paths: Mapping[str, Sequence[float]] = field(default_factory=dict)


def rows_figure(lines: Sequence[Line], panels: Sequence[Panel], title: str, legend: str) -> Figure:
    """A panel a quantity, a row a method: a dot at the mean over the seeds, a bar from the lowest to the highest."""
    figure, axes = new_figure([panel.width for panel in panels], height=1.7 + 0.23 * len(lines))
    for axis, panel in zip(axes, panels, strict=True):
        for place, line in enumerate(lines):
            fill = "#ffffff" if line.is_collapsed else INK
            draw_range(axis, line.values.get(panel.quantity, []), -place, fill=fill)
            draw_path(axis, line.paths.get(panel.quantity, []), -place, fill=fill)
        if panel.line is not None:
            axis.axvline(panel.line, color=SOFT, linestyle="--", linewidth=0.9, zorder=0)
        axis.set_title(panel.heading, fontsize=8)
        axis.set_ylim(-len(lines) + 0.4, 0.6)
        axis.set_yticks([-i for i in range(len(lines))], [n.label if axis is axes[0] else "" for n in lines])
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        if panel.is_share:
            axis.set_xlim(-0.06, 1.06)
            axis.set_xticks([0, 0.5, 1], ["0", "", "100 %"])
        else:
            write_ends(axis)
    for text, line in zip(axes[0].get_yticklabels(), lines, strict=True):
        text.set_fontweight("bold" if line.is_ours else "normal")
    hollow = "; hollow: collapsed" if any(line.is_collapsed for line in lines) else ""
    figure.suptitle(f"{title}\n{legend}\n{IS_BETTER}{hollow}", fontsize=8.5)
    figure.tight_layout()
    return figure


def write_ends(axis: Axes) -> None:
    """Write numbers at the first and the last tick alone: a panel has no room for more."""
    axis.locator_params(axis="x", nbins=3, steps=[1, 2, 5, 10])
    low, high = axis.get_xlim()
    ticks = [place for place in axis.get_xticks() if low <= place <= high]
    axis.set_xticks(ticks, [f"{place:g}" if place in (ticks[0], ticks[-1]) else "" for place in ticks])
    axis.set_xlim(low, high)


def draw_range(axis: Axes, values: Sequence[float], place: float, *, fill: str) -> None:
    """Draw a dot at the mean and a bar from the lowest to the highest."""
    if values:
        axis.plot([min(values), max(values)], [place, place], color=INK, linewidth=1.6, solid_capstyle="butt")
        draw_dot(axis, statistics.fmean(values), place, fill=fill)


def draw_path(axis: Axes, values: Sequence[float], place: float, *, fill: str) -> None:
    """Draw a bar at the first value, a dot at the last, and points between them."""
    if values:
        axis.plot(values, [place] * len(values), ".-", color=INK, linewidth=1.2, markersize=4)
        axis.plot(values[0], place, "|", color=INK, markersize=10, markeredgewidth=1.6, clip_on=False)
        draw_dot(axis, values[-1], place, fill=fill)


def draw_dot(axis: Axes, value: float, place: float, *, fill: str) -> None:
    axis.plot(value, place, "o", color=fill, markeredgecolor=INK, markersize=5, clip_on=False)


def new_figure(widths: Sequence[float], *, height: float) -> tuple[Figure, list[Axes]]:
    """A light figure without boxes: panels side by side, with these relative widths."""
    from matplotlib.figure import Figure  # here, so that the rest of the module needs no matplotlib

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    axes = list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes
