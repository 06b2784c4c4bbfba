"""The pictures of the README and of docs/, drawn from measured points (extra ``plots``: matplotlib).

    python -m benchmarks.plots --study results/study --compare results/compare --real results/smollm2-135m

    pareto.png        forgetting against utility, a mark a method, from the points of ``demem.py compare``
    ingredients.png   what each ingredient of the recipe adds, as ranges over the seeds
    size.png          forgetting and survival against the number of forget records
    real.png          a comparison on a real model: damage, chance and fluency, relearning

A picture whose points are not there is left out, and said so. Light background; marks and line styles, not colours,
tell things apart, so that they print in grey. This module measures nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.study_points import SIZE, SIZES, Settings, read_points
from benchmarks.study_rows import Row, make_rows
from benchmarks.study_tables import select
from benchmarks.study_variants import BOTH
from eval.pareto import Mean, means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 110  # inches, dots an inch: as wide as a README shows
INK, SOFT = "#1a1a1a", "#8a8a8a"
MARKS = "osD^vP*X<>hpd8"
FILLS = ("#1a1a1a", "#ffffff", "#9a9a9a")
LEGEND_COLUMNS = 6
SCATTERS = (
    ("forget/worst", "forget set, worst of 3 attacks", "keep/exact", "records to keep that survive"),
    ("forget_holdout/worst", "forget-holdout, worst of 3 attacks", "keep/exact", "records to keep that survive"),
    ("floor_distance_p", "forget set, p(true token) from chance", "perplexity_ratio", "held-out perplexity ratio"),
)
"""Quantity and title across, quantity and title up; the attacks: greedy, any of a few samples, (n, p)-discoverable."""
RELEARNED = re.compile(r"attack/forget/relearning steps:(\d+)\|not taught")
Panel = tuple[str, str, bool]
"""A quantity, its title, and whether it is a share."""
PANELS: tuple[Panel, ...] = (
    ("forget/discoverable", "forget set, (n,p)\n(lower is better)", True),
    ("forget_holdout/exact", "forget-holdout, exact\n(lower is better)", True),
    ("keep/exact", "to keep, exact\n(higher is better)", True),
    ("perplexity_ratio", "perplexity ratio\n(lower is better)", False),
    ("fluency", "fluency\n(higher is better)", False),
)
SIZE_PANELS = PANELS[:4]
LINES = {"base": ("DeMem", "o", "-"), "distil": ("distillation", "s", "--")}


# ---------------------------------------------------------------------- the pictures


def pareto_figure(all_means: Sequence[Mean]) -> Figure | None:
    """What can be extracted against what was damaged, a mark for every value of a method's knob."""
    shown = (*(q for q, *_ in SCATTERS), *(q for _, _, q, _ in SCATTERS))
    found = [m for m in all_means if all(place_of(m, quantity) is not None for quantity in shown)]
    if not found:
        return None
    figure, axes = new_figure(len(SCATTERS), height=3.6)
    names = list(dict.fromkeys(m.method for m in found))
    for axis, (x, x_title, y, y_title) in zip(axes, SCATTERS, strict=True):
        for name in names:
            draw_method(axis, [m for m in found if m.method == name], x, y, names.index(name))
        axis.set_xlabel(x_title, fontsize=8.5)
        axis.set_title(y_title, fontsize=8.5)
        if x != "floor_distance_p":
            axis.set_xlim(-0.06, 1.06)
            axis.set_ylim(-0.06, 1.06)
            axis.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
            axis.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    if max(m.values["perplexity_ratio"] for m in found) > 2:
        axes[-1].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=LEGEND_COLUMNS, loc="lower center", frameon=False, fontsize=8)
    seeds = max(m.seeds for m in found)
    figure.suptitle(f"Forgetting (left is better) against damage; {seeds} seed(s); crossed: collapsed", fontsize=10)
    figure.tight_layout(rect=(0, 0.06 * math.ceil(len(names) / LEGEND_COLUMNS), 1, 1))
    return figure


def real_figure(all_means: Sequence[Mean]) -> Figure | None:
    """A comparison without records to keep: what is extracted against damage, how the outputs read, what comes back."""
    shown = ("forget/worst", "perplexity_ratio", "floor_distance", "fluency")
    found = [m for m in all_means if all(place_of(m, quantity) is not None for quantity in shown)]
    if len(found) < 2:
        return None
    figure, axes = new_figure(3, height=3.4)
    names = list(dict.fromkeys(m.method for m in found))
    for name in names:
        rows = [m for m in found if m.method == name]
        draw_method(axes[0], rows, "forget/worst", "perplexity_ratio", names.index(name))
        draw_method(axes[1], rows, "floor_distance", "fluency", names.index(name))
        for mean in rows[:1]:
            draw_relearning(axes[2], mean, names.index(name))
    titles = (
        ("forget set, worst of 3 attacks", "held-out perplexity ratio"),
        ("forget set, BLEU from chance", "fluency"),
        ("relearning steps on a quarter", "the rest of the forget set, exact"),
    )
    for axis, (across, up) in zip(axes, titles, strict=True):
        axis.set_xlabel(across, fontsize=8.5)
        axis.set_title(up, fontsize=8.5)
    axes[0].set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes[2].set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    if max(m.values["perplexity_ratio"] for m in found) > 2:
        axes[0].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=LEGEND_COLUMNS, loc="lower center", frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06 * math.ceil(len(names) / LEGEND_COLUMNS), 1, 1))
    return figure


def draw_relearning(axis: Axes, mean: Mean, place: int) -> None:
    """What comes back of the forget passages that were not taught again, over the steps."""
    found = {int(m[1]): v for name, v in mean.values.items() if (m := RELEARNED.fullmatch(name))}
    steps = sorted(found)
    mark, fill = MARKS[place % len(MARKS)], FILLS[place % len(FILLS)]
    axis.plot(steps, [found[s] for s in steps], marker=mark, color=SOFT, markerfacecolor=fill, markeredgecolor=INK,
              markersize=6, linewidth=0.8)  # fmt: skip


def place_of(mean: Mean, quantity: str) -> float | None:
    """A mean, or, for "<group>/worst", the most that greedy decoding, sampling or (n, p) gets out of a group."""
    group, _, name = quantity.partition("/")
    if name != "worst":
        return mean.get(quantity)
    known = [mean.get(f"{group}/{attack}") for attack in ("exact", "exact_sampled", "discoverable")]
    return max((value for value in known if value is not None), default=None)


def draw_method(axis: Axes, found: Sequence[Mean], x: str, y: str, place: int) -> None:
    """One method's values of its knob, joined, with a deviation over the seeds; crossed where collapsed."""
    rows = sorted(found, key=lambda m: (m.size, m.value))
    xs, ys = [place_of(m, x) for m in rows], [place_of(m, y) for m in rows]
    axis.plot(xs, ys, color=SOFT, linewidth=0.8, zorder=1)
    fill, mark = FILLS[place % len(FILLS)], MARKS[place % len(MARKS)]
    for i, mean in enumerate(rows):
        axis.errorbar(
            xs[i], ys[i], xerr=mean.spreads.get(x, 0), yerr=mean.spreads.get(y, 0), color=SOFT, linewidth=0.8, zorder=2
        )
        label = mean.method if i == 0 else None
        axis.plot(xs[i], ys[i], mark, color=fill, markeredgecolor=INK, markersize=6, label=label, zorder=3)
        if mean.collapsed:
            axis.plot(xs[i], ys[i], "x", color=INK, markersize=11, zorder=4)


def ingredients_figure(rows: Sequence[Row]) -> Figure | None:
    """A line a variant: the mean over the seeds, and from the lowest to the highest. Dashed: the default recipe."""
    chosen = {n: r for n, r in select(rows).items() if r.seeds and n != "original"}
    if "base" not in chosen or len(chosen) < 2:
        return None
    figure, axes = new_figure(len(PANELS), height=1.3 + 0.24 * len(chosen))
    places = {name: -i for i, name in enumerate(chosen)}
    for axis, (quantity, title, is_share) in zip(axes, PANELS, strict=True):
        for name, row in chosen.items():
            draw_range(axis, row.values.get(quantity, []), places[name], is_hollow=bool(row.collapsed))
        if base := chosen["base"].values.get(quantity):
            axis.axvline(statistics.fmean(base), color=SOFT, linestyle="--", linewidth=0.9, zorder=0)
        axis.set_title(title, fontsize=8.5)
        axis.set_yticks(list(places.values()), list(places) if axis is axes[0] else [""] * len(places))
        if is_share:
            axis.set_xlim(-0.04, 1.04)
            axis.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        axis.grid(axis="y", color="#ececec", linewidth=0.8)
    seeds = max(r.seeds for r in chosen.values())
    over = "one seed" if seeds == 1 else f"mean and range over up to {seeds} seeds"
    figure.suptitle(f"One ingredient switched at a time: {over} (hollow: collapsed)")
    figure.tight_layout()
    return figure


def draw_range(axis: Axes, values: Sequence[float], place: float, *, is_hollow: bool) -> None:
    """A dot at the mean and a line from the lowest to the highest."""
    if values:
        axis.plot([min(values), max(values)], [place, place], color=INK, linewidth=1.6, solid_capstyle="butt")
        fill = "#ffffff" if is_hollow else INK
        axis.plot(statistics.fmean(values), place, "o", color=fill, markeredgecolor=INK, markersize=5)


def size_figure(rows: Sequence[Row]) -> Figure | None:
    """Two lines, DeMem and its rival, in four panels over the number of forget records."""
    found = {(n, s): r for s in SIZES for n, r in select(rows, size=s).items() if n in BOTH and r.seeds}
    if len({size for _, size in found}) < 2:
        return None
    figure, axes = new_figure(len(SIZE_PANELS), height=2.9)
    for axis, (quantity, title, is_share) in zip(axes, SIZE_PANELS, strict=True):
        for name, (text, mark, style) in LINES.items():
            known = [(s, r.values[quantity]) for (n, s), r in found.items() if n == name and r.values.get(quantity)]
            xs, ys = [s for s, _ in known], [statistics.fmean(v) for _, v in known]
            fill = INK if style == "-" else "#ffffff"
            axis.plot(xs, ys, mark + style, color=INK, markerfacecolor=fill, markersize=5, linewidth=1.2, label=text)
            for size, values in known:
                axis.plot([size, size], [min(values), max(values)], color=SOFT, linewidth=1.4, zorder=0)
        axis.set_title(title, fontsize=8.5)
        axis.set_xticks(sorted({size for _, size in found}))
        if is_share:
            axis.set_ylim(-0.04, 1.04)
            axis.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("records to forget", fontsize=9)
    figure.tight_layout()
    return figure


def new_figure(panels: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of some panels side by side, light, without boxes."""
    from matplotlib.figure import Figure  # here, so that the rest of the module needs no matplotlib

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


# ---------------------------------------------------------------------- the program


def read_comparison(folder: Path) -> list[Mapping[str, Any]]:
    """The points of a comparison's folder; none where there is none."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "points").glob("*.json"))]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--study", type=Path, default=Path("results/study"), help="folder of the lab study")
    parser.add_argument("--compare", type=Path, default=Path("results/compare"), help="folder of demem.py compare")
    parser.add_argument("--real", type=Path, default=Path("results/smollm2-135m"), help="the same, of a real model")
    parser.add_argument("--out", type=Path, default=Path("docs/plots"), help="where the pictures go")
    options = parser.parse_args(arguments)
    rows = make_rows(read_points(options.study, Settings()))
    points = [p for p in read_comparison(options.compare) if p["size"] == SIZE]
    pictures = {
        "pareto": (pareto_figure(means(points)), options.compare),
        "ingredients": (ingredients_figure(rows), options.study),
        "size": (size_figure(rows), options.study),
        "real": (real_figure(means(read_comparison(options.real))), options.real),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (figure, folder) in pictures.items():
        if figure is None:
            print(f"{name}: {folder} has no points for it")
            continue
        figure.savefig(options.out / f"{name}.png", metadata={"Software": None})
        print(options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
