"""The pictures of the README, of results/ and of docs/, drawn from measured points (extra ``plots``: matplotlib).

    python -m benchmarks.plots --study results/study --compare results/compare --real results/smollm2-135m

    methods.png       DeMem and its rivals on the lab, a line a method, from the points of ``demem.py compare``
    ingredients.png   what each ingredient of the recipe adds, a line a variant
    size.png          forgetting and survival against the number of forget records
    depth.png         at which tokens of a suffix the true one still is the first choice, a line a method
    real.png          the same as methods.png on a real model, and what relearning brings back

A picture without points is left out, and a line says so. This module knows which points become which picture, and
measures nothing. drawing.py knows how to draw.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.plots.depth import depth_figure
from benchmarks.plots.drawing import INK, IS_BETTER, SOFT, Line, Panel, new_figure, rows_figure
from benchmarks.readme_tables import NAMES, Point, read_points, relearning_steps, untaught
from benchmarks.study.points import SIZE, SIZES, Settings
from benchmarks.study.points import read_points as read_study
from benchmarks.study.rows import Row, make_rows
from benchmarks.study.tables import select
from benchmarks.study.variants import BOTH
from eval.pareto import TARGET, collapse, derived
from unlearning.compare import methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORST = ("exact", "exact_sampled", "discoverable")  # greedy, in any of a few samples, (n, p)
WORST_OF_3 = "worst of 3: the most of greedy, sampled and (n,p) extraction"
# Not a summary's quantity: BLEU of the passages that were not retaught, after each number of relearning steps.
RELEARNED = "relearned"
LINES = {"base": ("DeMem", "o", "-"), "distil": ("distillation", "s", "--")}
SHORT = {
    "base": "DeMem's recipe",
    "kl-plain": "KL penalty to the original",
    "kl-counterfactual": "KL to the counterfactual",
    "no-retain": "no text to keep",
    "retain-lm": "text to keep, by LM loss",
    "no-own": "no text of its own to keep",
    "sparse": "one score a response",
    "one-window": "one window a passage",
    "cool": "rollouts at 0.7",
    "hot": "rollouts at 1.3",
    "no-guards": "no guards",
    "no-repetition": "repetition is free",
    "no-floor": "BLEU below chance rewarded",
    "early-end": "may end early",
    "early-unguarded": "may end early, no guards",
    "attached": "value loss trains the blocks",
    "semantic": "BERTScore instead of BLEU",
    "distil": "distillation, no PPO",
    "distil-long": "… as long as with PPO after it",
    "warm": "distillation, then PPO",
    "warm-half": "half a distillation, then PPO",
    "warm-semantic": "distillation, PPO by BERTScore",
}
"""Short names of ``benchmarks.study.variants.VARIANTS``, which fit into a picture."""

KEPT = (
    Panel("keep/exact", "to keep,\nexact", "more", is_share=True),
    Panel("perplexity_ratio", "perplexity\nratio", "less"),
)
FLUENCY = Panel("fluency", "fluency", "more")
EXTRACTED = (
    Panel("forget/worst", "forget set,\nworst of 3", "less", is_share=True),
    Panel("forget_holdout/worst", "forget-holdout,\nworst of 3", "less", is_share=True),
)
STUDY_PANELS = (
    Panel("forget/discoverable", "forget set,\n(n,p)", "less", is_share=True),
    Panel("forget_holdout/exact", "forget-holdout,\nexact", "less", is_share=True),
    *KEPT,
    FLUENCY,
)
LAB_PANELS = (*EXTRACTED, *KEPT, Panel("forget/true_token_p", "p(true token)", "less"), FLUENCY)
REAL_PANELS = (
    EXTRACTED[0],
    Panel("forget/n_bleu", "forget set,\nN-BLEU", ""),
    replace(EXTRACTED[1], better=""),
    KEPT[1],
    Panel("forget/distinct_2_ratio", "distinct bigrams\n/ the truth's", "more"),
    Panel(RELEARNED, "relearning:\nBLEU, untaught", "less", width=1.6),
)
"""Two panels say nothing about better or worse. More N-BLEU than chance has is damage. Whether passages that nobody
asked to forget should go, too, is for the reader to decide."""
SIZE_PANELS = STUDY_PANELS[:4]


# ---------------------------------------------------------------------- the pictures


def methods_figure(points: Sequence[Point]) -> Figure | None:
    """DeMem and its rivals, each at its default. The dashed line: the model trained without the records."""
    if len(points) < 2:
        return None
    lines = method_lines(points)
    target = lines[TARGET].values if TARGET in lines else {}
    panels = [with_line(panel, target.get(panel.quantity)) for panel in LAB_PANELS]
    title = f"The lab, {points[0]['size']} records to forget, {told(seeds_of(points))}"
    title += "; dashed: trained without the records"
    return rows_figure(list(lines.values()), panels, title, WORST_OF_3)


def ingredients_figure(rows: Sequence[Row]) -> Figure | None:
    """A row a variant. The dashed line: DeMem's recipe."""
    chosen = {n: r for n, r in select(rows).items() if r.seeds and n != "original"}
    if "base" not in chosen or len(chosen) < 2:
        return None
    seeds = [row.seeds for row in chosen.values()]
    lines = [
        Line(with_count(SHORT[name], row.seeds, max(seeds)), row.values, bool(row.collapsed), is_ours=name == "base")
        for name, row in chosen.items()
    ]
    panels = [with_line(panel, chosen["base"].values.get(panel.quantity)) for panel in STUDY_PANELS]
    title = "One ingredient of DeMem's recipe switched at a time"
    return rows_figure(lines, panels, title, f"the lab, {SIZE} records to forget, {told(seeds)}; dashed: the recipe")


def real_figure(points: Sequence[Point]) -> Figure | None:
    """The methods on a real model. The dashed line is chance: the untouched model on passages that it never met."""
    original = next((p["summary"] for p in points if p["method"] == "original"), None)
    if original is None or len(points) < 2:
        return None
    chance = {f"forget/{n.removeprefix('never/')}": [v] for n, v in original.items() if n.startswith("never/")}
    chance |= {f"{group}/worst": [worst(original, "never")] for group in ("forget", "forget_holdout")}
    chance |= {"perplexity_ratio": [1.0], RELEARNED: chance.get("forget/bleu", [])}
    panels = [with_line(panel, chance.get(panel.quantity)) for panel in REAL_PANELS]
    title = f"SmolLM2-135M, {points[0]['size']} passages to forget, {told(seeds_of(points))}"
    title += "; dashed: chance (never-trained passages; perplexity: before)"
    legend = WORST_OF_3
    if steps := relearning_steps(points):
        legend += f"; relearning: from {steps[0]} (bar) to {steps[-1]} steps (dot)"
    return rows_figure(list(method_lines(points).values()), panels, title, legend)


def size_figure(rows: Sequence[Row]) -> Figure | None:
    """Two lines, DeMem and its rival, in four panels over the number of forget records."""
    found = {(n, s): r for s in SIZES for n, r in select(rows, size=s).items() if n in BOTH and r.seeds}
    sizes = sorted({size for _, size in found})
    if len(sizes) < 2:
        return None
    figure, axes = new_figure([panel.width for panel in SIZE_PANELS], height=3.0)
    for axis, panel in zip(axes, SIZE_PANELS, strict=True):
        for name in LINES:
            draw_sizes(axis, name, {s: r.values.get(panel.quantity, []) for (n, s), r in found.items() if n == name})
        axis.set_title(panel.heading, fontsize=8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, list(map(str, sizes)))
        if panel.is_share:
            axis.set_ylim(-0.04, 1.04)
            axis.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes[0].legend(frameon=False, fontsize=8)
    title = f"The lab, over the number of records to forget, {told([r.seeds for r in found.values()])}; {IS_BETTER}"
    confounded = "the fewer they are, the more often training met each, and the more are held out"
    figure.suptitle(f"{title}\n{confounded}", fontsize=8.5)
    figure.tight_layout()
    return figure


def draw_sizes(axis: Axes, name: str, known: Mapping[int, Sequence[float]]) -> None:
    """Draw one of ``LINES``: means over the seeds, and a bar from the lowest to the highest at each size."""
    text, mark, style = LINES[name]
    known = {size: values for size, values in known.items() if values}
    fill = INK if style == "-" else "#ffffff"
    means = [statistics.fmean(values) for values in known.values()]
    axis.plot(
        list(known), means, mark + style, color=INK, markerfacecolor=fill, markersize=5, linewidth=1.2, label=text
    )
    for size, values in known.items():
        axis.plot([size, size], [min(values), max(values)], color=SOFT, linewidth=1.4, zorder=0)


# ---------------------------------------------------------------------- from points to lines


def method_lines(points: Sequence[Point]) -> dict[str, Line]:
    """A line for each method that was measured, in the order of ``NAMES``."""
    original = next(p["summary"] for p in points if p["method"] == "original")
    most, lines = max(seeds_of(points), default=1), {}
    for name, label in NAMES.items():
        members = [p for p in points if p["method"] == name]
        if not members:
            continue
        rows = [{**p["summary"], **derived(p["summary"], original)} for p in members]
        groups = [g for g in ("forget", "forget_holdout") if all(f"{g}/exact" in row for row in rows)]
        values = {n: [row[n] for row in rows] for n in rows[0] if all(n in row for row in rows)}
        values |= {f"{group}/worst": [worst(row, group) for row in rows] for group in groups}
        fallen = sum(bool(collapse(p["summary"], original, p["kind"])) for p in members)
        found = [steps for p in members if (steps := untaught(p, "bleu"))]
        lines[name] = Line(
            with_count(label, len(members), most) if methods.METHODS[name].is_seeded else label,
            values,
            is_collapsed=methods.METHODS[name].kind not in ("original", "retraining") and 2 * fallen > len(members),
            is_ours=name == "demem",
            paths={RELEARNED: [statistics.fmean(step) for step in zip(*found, strict=True)]} if found else {},
        )
    return lines


def worst(summary: Mapping[str, float], group: str) -> float:
    """The most that greedy decoding, sampling or (n, p) gets out of a group."""
    return max(summary[f"{group}/{attack}"] for attack in WORST if f"{group}/{attack}" in summary)


def with_line(panel: Panel, values: Sequence[float] | None) -> Panel:
    """The panel with a dashed line at the mean of some values, if there are any."""
    return replace(panel, line=statistics.fmean(values) if values else None)


def seeds_of(points: Sequence[Point]) -> list[int]:
    """The number of seeds of every method that a seed changes."""
    names = [p["method"] for p in points if methods.METHODS[p["method"]].is_seeded]
    return [names.count(name) for name in dict.fromkeys(names)]


def told(seeds: Sequence[int]) -> str:
    """The numbers of seeds in words, for a title."""
    most = max(seeds)
    return "one seed" if most == 1 else f"{'up to ' if min(seeds) < most else ''}{most} seeds"


def with_count(label: str, seeds: int, most: int) -> str:
    """The label; where a method has fewer seeds than others, with their number."""
    return label if seeds >= most else f"{label}, n = {seeds}"


# ---------------------------------------------------------------------- the program


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--study", type=Path, default=Path("results/study"), help="folder of the lab study")
    parser.add_argument("--compare", type=Path, default=Path("results/compare"), help="folder of demem.py compare")
    parser.add_argument(
        "--equal", type=Path, default=Path("results/equal"), help="folder of demem.py compare with --updates"
    )
    parser.add_argument(
        "--real", type=Path, default=Path("results/smollm2-135m"), help="folder of demem.py compare for a real model"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/plots"), help="where the pictures go")
    options = parser.parse_args(arguments)
    rows = make_rows(read_study(options.study, Settings()))
    pictures = {
        "methods": (methods_figure(read_points(options.compare)), options.compare),
        "depth": (depth_figure(read_points(options.equal)), options.equal),
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
