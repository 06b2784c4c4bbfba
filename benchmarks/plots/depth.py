"""The picture that shows depth: at which tokens of a suffix the true one still is the first choice, a line a method.

This module knows points of a comparison and lines. What a curve is: :mod:`eval.along`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.plots.drawing import INK, SOFT, new_figure
from benchmarks.readme_tables import Point
from eval.along import curve_of, mean_along

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORGET, NEVER = "forget", "never"
LINES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("original", FORGET, "before", {"color": SOFT, "linewidth": 1.8}),
    ("demem", FORGET, "DeMem", {"color": INK, "linestyle": "--"}),
    ("distil", FORGET, "distillation", {"color": INK, "linestyle": ":"}),
    ("deep", FORGET, "DeMem, deep", {"color": INK, "linewidth": 2.2}),
    ("original", NEVER, "never-trained passages", {"color": SOFT, "linestyle": "-.", "linewidth": 1.6}),
    ("without-forget", FORGET, "the exact twin", {"color": INK, "marker": "o", "markersize": 3, "linewidth": 0.8}),
)
"""Method, group of passages, label and style of each line, in the order of the legend."""


def depth_curves(points: Sequence[Point]) -> dict[str, list[float]]:
    """The curve of each line by its label, the mean over the seeds; lines without a stored curve are left out."""
    found = {}
    for method, group, label, _ in LINES:
        curves = [curve for p in points if p["method"] == method and (curve := curve_of(p, group))]
        if curves:
            found[label] = mean_along(curves)
    return found


def depth_figure(points: Sequence[Point]) -> Figure | None:
    """The lines over the tokens of the suffix; None where fewer than two have a stored curve."""
    curves = depth_curves(points)
    if len(curves) < 2:
        return None
    figure, (axis,) = new_figure([1.0], height=3.4)
    for _, _, label, style in LINES:
        if label in curves:
            axis.plot(range(1, len(curves[label]) + 1), curves[label], label=label, **style)
    axis.set_xlim(left=1)
    axis.set_ylim(-0.02, 1.02)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axis.set_xlabel("token of the suffix; all the true tokens before it are given", fontsize=8)
    axis.set_ylabel("first choice is the true token,\nshare of passages", fontsize=8)
    axis.grid(axis="y", color="#ececec", linewidth=0.8)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    seeds = [p["method"] for p in points if p.get("by_place")]
    most = max(seeds.count(method) for method in set(seeds))
    figure.suptitle(
        f"How deep the forgetting goes: {points[0]['size']} passages to forget, mean over {most} "
        f"seed{'s' if most > 1 else ''} at most",
        fontsize=8.5,
    )
    figure.tight_layout()
    return figure
