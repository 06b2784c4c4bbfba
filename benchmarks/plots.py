"""The pictures of the README, of results/ and of docs/, drawn from measured points (extra ``plots``: matplotlib).

    python -m benchmarks.plots --study results/study --compare results/compare --real results/smollm2-135m

    methods.png       DeMem and its rivals on the lab, a line a method, from the points of ``demem.py compare``
    ingredients.png   what each ingredient of the recipe adds, a line a variant
    size.png          forgetting and survival against the number of forget records
    real.png          the same as methods.png on a real model, and what relearning brings back

A picture whose points are not there is left out, and said so. Light background; marks and line styles, not colours,
tell things apart, so that they print in grey. This module measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.readme_tables import Point, read_points, untaught
from benchmarks.study_points import SIZES, Settings
from benchmarks.study_points import read_points as read_study
from benchmarks.study_rows import Row, make_rows
from benchmarks.study_tables import select
from benchmarks.study_variants import BOTH
from eval.pareto import TARGET, collapse, derived

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 110  # inches, dots an inch: as wide as a README shows
INK, SOFT, GRID = "#1a1a1a", "#8a8a8a", "#ececec"
WORST = ("exact", "exact_sampled", "discoverable")  # greedy, in any of a few samples, (n, p)
RIGHT = "\N{RIGHTWARDS ARROW}"
RELEARNED = "relearned"  # a quantity of its own: BLEU of the untaught, from the first to the last step
LINES = {"base": ("DeMem", "o", "-"), "distil": ("distillation", "s", "--")}
SHORT = {
    "base": "the default recipe",
    "kl-plain": "KL to the original",
    "kl-counterfactual": "KL to the counterfactual",
    "no-retain": "no text to keep",
    "retain-lm": "text to keep, by LM loss",
    "no-own": "no own text to keep",
    "sparse": "one score a response",
    "one-window": "one window a passage",
    "cool": "rollouts at 0.7",
    "hot": "rollouts at 1.3",
    "no-guards": "no guards",
    "no-repetition": "repetition is free",
    "no-floor": "no chance floor",
    "early-end": "may end early",
    "attached": "value loss in the trunk",
    "semantic": "BERTScore for BLEU",
    "distil": "distillation alone",
    "warm": "distillation, PPO",
    "warm-half": "half of it, PPO",
    "warm-semantic": "distillation, PPO by BERTScore",
}
"""Of ``study_variants.VARIANTS``, as a picture has room for."""
METHODS = {
    "original": "before",
    "demem": "DeMem",
    "demem-lora": "DeMem, LoRA",
    "distil": "distillation",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "graddiff": "gradient difference",
    "ul": "UL",
    "paper": "the paper's settings",
    "paper-as-run": "the notebook",
    "memfree": "MemFree decoding",
    TARGET: "trained without them",
}
"""The same of ``demem_methods.METHODS``; any other is left out."""


@dataclass(frozen=True)
class Panel:
    """A quantity and its title; a share goes from 0 to 100 %. ``line``: where a dashed line stands, None for none."""

    quantity: str
    title: str
    is_share: bool = False
    line: float | None = None


@dataclass(frozen=True)
class Line:
    """What a picture shows of one method or variant: each quantity's values over the seeds."""

    label: str
    values: Mapping[str, Sequence[float]]
    is_collapsed: bool = False
    arrows: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # quantities that go from here to there


STUDY_PANELS = (
    Panel("forget/discoverable", "forget set,\n(n,p)", is_share=True),
    Panel("forget_holdout/exact", "forget-holdout,\nexact", is_share=True),
    Panel("keep/exact", "to keep,\nexact \N{RIGHTWARDS ARROW}", is_share=True),
    Panel("perplexity_ratio", "perplexity\nratio"),
    Panel("fluency", "fluency \N{RIGHTWARDS ARROW}"),
)
LAB_PANELS = (
    Panel("forget/worst", "forget set,\nworst of 3", is_share=True),
    Panel("forget_holdout/worst", "forget-holdout,\nworst of 3", is_share=True),
    Panel("keep/exact", "to keep,\nexact \N{RIGHTWARDS ARROW}", is_share=True),
    Panel("perplexity_ratio", "perplexity\nratio"),
    Panel("forget/true_token_p", "p(true token)"),
    Panel("fluency", "fluency \N{RIGHTWARDS ARROW}"),
)
REAL_PANELS = (
    Panel("forget/worst", "forget set,\nworst of 3", is_share=True),
    Panel("forget/n_bleu", "N-BLEU \N{RIGHTWARDS ARROW}"),
    Panel("forget_holdout/worst", "forget-holdout,\nworst of 3", is_share=True),
    Panel("perplexity_ratio", "perplexity\nratio"),
    Panel("forget/distinct_2_ratio", "distinct bigrams\n/ the truth's \N{RIGHTWARDS ARROW}"),
    Panel(RELEARNED, "relearning:\nBLEU, untaught"),
)
SIZE_PANELS = STUDY_PANELS[:4]


# ---------------------------------------------------------------------- the pictures


def methods_figure(points: Sequence[Point]) -> Figure | None:
    """DeMem and its rivals, each with its default. Dashed: the model trained without the records."""
    if len(points) < 2:
        return None
    lines = method_lines(points)
    target = next((line.values for line in lines if line.label == METHODS[TARGET]), {})
    panels = [with_line(panel, target.get(panel.quantity)) for panel in LAB_PANELS]
    seeds = max(len(values) for line in lines for values in line.values.values())
    return rows_figure(lines, panels, f"The lab, 64 records: up to {seeds} seeds; dashed: trained without them")


def ingredients_figure(rows: Sequence[Row]) -> Figure | None:
    """A line a variant. Dashed: the default recipe."""
    chosen = {n: r for n, r in select(rows).items() if r.seeds and n != "original"}
    if "base" not in chosen or len(chosen) < 2:
        return None
    lines = [Line(SHORT[name], row.values, bool(row.collapsed)) for name, row in chosen.items()]
    panels = [with_line(panel, chosen["base"].values.get(panel.quantity)) for panel in STUDY_PANELS]
    seeds = max(r.seeds for r in chosen.values())
    over = "one seed" if seeds == 1 else f"up to {seeds} seeds"
    return rows_figure(lines, panels, f"One ingredient of the recipe switched at a time: {over}; dashed: the recipe")


def real_figure(points: Sequence[Point]) -> Figure | None:
    """The methods on a real model. Dashed: chance, what the untouched model does on passages that it never met."""
    original = next((p["summary"] for p in points if p["method"] == "original"), None)
    if original is None or len(points) < 2:
        return None
    chance = {f"forget/{n.removeprefix('never/')}": [v] for n, v in original.items() if n.startswith("never/")}
    chance |= {"forget/worst": [worst(original, "never")], "perplexity_ratio": [1.0]}
    panels = [with_line(panel, chance.get(panel.quantity)) for panel in REAL_PANELS]
    records = next(p["size"] for p in points)
    title = f"SmolLM2-135M, {records} passages, one seed; dashed: chance (never-trained passages)"
    return rows_figure(method_lines(points), panels, title)


def rows_figure(lines: Sequence[Line], panels: Sequence[Panel], title: str) -> Figure:
    """A panel a quantity, a line a method: the mean over the seeds, and from the lowest to the highest."""
    figure, axes = new_figure(len(panels), height=1.4 + 0.23 * len(lines))
    for axis, panel in zip(axes, panels, strict=True):
        for place, line in enumerate(lines):
            draw_range(axis, line.values.get(panel.quantity, []), -place, is_hollow=line.is_collapsed)
            if panel.quantity in line.arrows:
                draw_arrow(axis, line.arrows[panel.quantity], -place)
        if panel.line is not None:
            axis.axvline(panel.line, color=SOFT, linestyle="--", linewidth=0.9, zorder=0)
        axis.set_title(panel.title, fontsize=8)
        axis.set_ylim(-len(lines) + 0.4, 0.6)
        axis.set_yticks([-i for i in range(len(lines))], [n.label if axis is axes[0] else "" for n in lines])
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.locator_params(axis="x", nbins=3)
        if panel.is_share:
            axis.set_xlim(-0.06, 1.06)
            axis.set_xticks([0, 0.5, 1], ["0", "", "100 %"])
    is_any_hollow = any(line.is_collapsed for line in lines)
    more = f"; {RIGHT}: more is better, else less" + ("; hollow: collapsed" if is_any_hollow else "")
    figure.suptitle(title + more, fontsize=8.5)
    figure.tight_layout()
    return figure


def draw_range(axis: Axes, values: Sequence[float], place: float, *, is_hollow: bool) -> None:
    """A dot at the mean and a line from the lowest to the highest."""
    if values:
        axis.plot([min(values), max(values)], [place, place], color=INK, linewidth=1.6, solid_capstyle="butt")
        fill = "#ffffff" if is_hollow else INK
        axis.plot(statistics.fmean(values), place, "o", color=fill, markeredgecolor=INK, markersize=5, clip_on=False)


def draw_arrow(axis: Axes, ends: tuple[float, float], place: float) -> None:
    """From a hollow dot to a filled one: before and after."""
    axis.plot(ends, [place, place], color=INK, linewidth=1.2)
    for value, fill in zip(ends, ("#ffffff", INK), strict=True):
        axis.plot(value, place, "o", color=fill, markeredgecolor=INK, markersize=5, clip_on=False)


def size_figure(rows: Sequence[Row]) -> Figure | None:
    """Two lines, DeMem and its rival, in four panels over the number of forget records."""
    found = {(n, s): r for s in SIZES for n, r in select(rows, size=s).items() if n in BOTH and r.seeds}
    if len({size for _, size in found}) < 2:
        return None
    figure, axes = new_figure(len(SIZE_PANELS), height=2.9)
    for axis, panel in zip(axes, SIZE_PANELS, strict=True):
        for name, (text, mark, style) in LINES.items():
            known = [
                (s, r.values[panel.quantity])
                for (n, s), r in found.items()
                if n == name and r.values.get(panel.quantity)
            ]
            xs, ys = [s for s, _ in known], [statistics.fmean(v) for _, v in known]
            fill = INK if style == "-" else "#ffffff"
            axis.plot(xs, ys, mark + style, color=INK, markerfacecolor=fill, markersize=5, linewidth=1.2, label=text)
            for size, values in known:
                axis.plot([size, size], [min(values), max(values)], color=SOFT, linewidth=1.4, zorder=0)
        axis.set_title(panel.title, fontsize=8.5)
        sizes = sorted({size for _, size in found})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, list(map(str, sizes)))
        if panel.is_share:
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


# ---------------------------------------------------------------------- from points to lines


def method_lines(points: Sequence[Point]) -> list[Line]:
    """A line for each method that was measured, in the order of ``METHODS``."""
    original = next(p["summary"] for p in points if p["method"] == "original")
    lines = []
    for name, label in METHODS.items():
        members = [p for p in points if p["method"] == name]
        if not members:
            continue
        rows = [{**p["summary"], **derived(p["summary"], original)} for p in members]
        groups = [g for g in ("forget", "forget_holdout") if all(f"{g}/exact" in row for row in rows)]
        values = {n: [row[n] for row in rows] for n in rows[0] if all(n in row for row in rows)}
        values |= {f"{group}/worst": [worst(row, group) for row in rows] for group in groups}
        fallen = sum(bool(collapse(p["summary"], p["kind"])) for p in members)
        is_collapsed = name not in ("original", TARGET) and 2 * fallen > len(members)
        found = untaught(members[0], "bleu")
        lines.append(Line(label, values, is_collapsed, {RELEARNED: (found[0], found[-1])} if found else {}))
    return lines


def worst(summary: Mapping[str, float], group: str) -> float:
    """The most that greedy decoding, sampling or (n, p) gets out of a group."""
    return max(summary[f"{group}/{attack}"] for attack in WORST if f"{group}/{attack}" in summary)


def with_line(panel: Panel, values: Sequence[float] | None) -> Panel:
    """The panel with a dashed line at the mean of some values, if there are any."""
    line = statistics.fmean(values) if values else None
    return Panel(panel.quantity, panel.title, is_share=panel.is_share, line=line)


# ---------------------------------------------------------------------- the program


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--study", type=Path, default=Path("results/study"), help="folder of the lab study")
    parser.add_argument("--compare", type=Path, default=Path("results/compare"), help="folder of demem.py compare")
    parser.add_argument("--real", type=Path, default=Path("results/smollm2-135m"), help="the same, of a real model")
    parser.add_argument("--out", type=Path, default=Path("docs/plots"), help="where the pictures go")
    options = parser.parse_args(arguments)
    rows = make_rows(read_study(options.study, Settings()))
    pictures = {
        "methods": (methods_figure(read_points(options.compare)), options.compare),
        "ingredients": (ingredients_figure(rows), options.study),
        "size": (size_figure(rows), options.study),
        "real": (real_figure(read_points(options.real)), options.real),
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
