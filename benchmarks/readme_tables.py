"""The result tables of README, ``docs/results.md`` and ``results/``: points and cost model write them, not hands.

    python -m benchmarks.readme_tables          # after new points; the tests fail while a page says anything else

In a page a table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; ``TABLES`` knows the names.
This module measures nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.compared import compared_points
from eval.pareto import TARGET, collapse, derived, means
from eval.report.comparison.text import markdown, number

from .cost.scale_table import scale_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md", "results/smollm2-135m/README.md")
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->\n)", flags=re.DOTALL)

Point = Mapping[str, Any]
Summary = Mapping[str, float]

NAMES = {
    "original": "before",
    "demem": "DeMem",
    "demem-lora": "DeMem, LoRA",
    "distil": "distillation",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "graddiff": "gradient difference",
    "undial": "UNDIAL",
    "wga": "WGA",
    "satimp": "SatImp",
    "jensun": "JensUn",
    "rmu": "RMU",
    "undo": "UNDO",
    "dpo": "DPO, refusals",
    "dpo-swapped": "DPO, made-up secrets",
    "grpo": "GRPO, like PURGE",
    "ul": "UL",
    "paper": "the paper's settings, BLEU",
    "paper-as-run": "its notebook, BLEU",
    "memfree": "MemFree decoding",
    TARGET: "trained without them",
    "retain-only": "trained on no private records",
}
"""What tables and pictures call the methods of a comparison, in their order; any other is left out."""

AT_LENGTH = {
    "distil": "distillation to the counterfactual reference",
    "ul": "UL (gradient ascent)",
    "paper": "the paper's hyper-parameters, BLEU in BERTScore's place",
    "paper-as-run": "… with its notebook's flaws, BLEU, four batches (it called one)",
    "memfree": "MemFree decoding, the model as it was",
    TARGET: "trained without the records alone: the target",
    "retain-only": "trained without any record of a person",
}
"""The same where there is room for more."""


@dataclass(frozen=True)
class Metric:
    """``quantity`` of a summary, or derived from it, and its kind, as ``eval.report.comparison.text.number`` knows it.

    in_brief      whether it stands in the short table, too
    by_chance     whether the same of the never-trained passages says what chance is
    has_interval  whether the long table shows the 95 % interval
    """

    label: str
    quantity: str
    kind: str = "share"
    in_brief: bool = False
    by_chance: bool = True
    has_interval: bool = False

    def write(self, value: float) -> str:
        """A value as a cell shows it; a ratio with its sign."""
        return ("\N{MULTIPLICATION SIGN} " if self.quantity == "perplexity_ratio" else "") + number(value, self.kind)


LAB_COLUMNS = (
    Metric("forget, sampled", "forget/exact_sampled"),
    Metric("forget-holdout, sampled", "forget_holdout/exact_sampled"),
    Metric("records to keep", "keep/exact"),
    Metric("perplexity", "perplexity_ratio", "ratio"),
    Metric("p(true token)", "forget/true_token_p", "number"),
    Metric("membership, AUC", "membership/loss_auc", "number"),
    Metric("fluency", "fluency", "number"),
)
REAL_METRICS = (
    Metric("greedy exact extraction", "forget/exact", in_brief=True, has_interval=True),
    Metric("… with the pre-prefix in front", "forget/exact_long"),
    Metric("… after 12 more true tokens", "forget/exact_after_12"),
    Metric("… in one sample at temperature 1", "forget/exact_sampled", in_brief=True),
    Metric("(n,p): 100 samples, with a probability of 50 %", "forget/discoverable", in_brief=True),
    Metric("approximate: BLEU of 75 and more", "forget/approximate"),
    Metric("N-BLEU", "forget/n_bleu", "score", in_brief=True, has_interval=True),
    Metric("extraction strength (ES)", "forget/extraction_strength", "number", in_brief=True),
    Metric("memorisation accuracy (MA)", "forget/ma"),
    Metric("extraction likelihood (EL₁₀)", "forget/el_10", "number", in_brief=True),
    Metric("probability of the true token", "forget/true_token_p", "number", in_brief=True),
    Metric("membership, AUC by loss", "membership/loss_auc", "number", in_brief=True, by_chance=False),
    Metric("… by min-k %++", "membership/min_k_plus_plus_auc", "number", by_chance=False),
    Metric("forget-holdout: greedy exact", "forget_holdout/exact", in_brief=True, by_chance=False),
    Metric("… in one sample", "forget_holdout/exact_sampled", by_chance=False),
    Metric("… (n,p)", "forget_holdout/discoverable", by_chance=False),
    Metric("held-out perplexity", "perplexity_ratio", "ratio", in_brief=True, by_chance=False),
    Metric("NLL of the never-trained passages", "never/nll_suffix", "number", in_brief=True, by_chance=False),
    Metric("cloze accuracy", "utility/cloze", in_brief=True, by_chance=False),
    Metric("distinct bigrams / the truth's", "forget/distinct_2_ratio", "number", in_brief=True),
    Metric("tokens in loops", "forget/loop"),
)
HEADLINE = ("forget/exact", "forget/n_bleu", "forget/true_token_p", "membership/loss_auc", "perplexity_ratio")
"""The columns of the README's table: quantities of ``REAL_METRICS``."""


# ---------------------------------------------------------------------- the tables


def read_points(folder: Path) -> list[Point]:
    """The points of a comparison, at the default of their knobs."""
    return [p for p in compared_points(folder) if p["is_default"] or p["kind"] == "original"]


def first_seeds(points: Sequence[Point]) -> dict[str, Point]:
    """Of each method the point with the lowest seed."""
    return {p["method"]: p for p in sorted(points, key=_seed, reverse=True)}


def _seed(point: Point) -> int:
    return int(point["seed"])


def lab_table(folder: Path) -> str:
    """A method a row, means over its seeds."""
    points = read_points(folder)
    found = {mean.method: mean for mean in means(points)}
    original = next(p["summary"] for p in points if p["kind"] == "original")
    rows = [["", "seeds", *(m.label for m in LAB_COLUMNS), "collapsed"]]
    for name in (name for name in NAMES if name in found):
        mean = found[name]
        fallen = sum(bool(collapse(p["summary"], original, p["kind"])) for p in points if p["method"] == name)
        is_trained = mean.kind == "training"
        rows.append([
            named(name, AT_LENGTH),
            str(mean.seeds) if is_trained or mean.kind == "retraining" else "",
            *(m.write(mean.values[m.quantity]) for m in LAB_COLUMNS),
            f"{fallen} of {mean.seeds}" if fallen and is_trained else "",
        ])  # fmt: skip
    return markdown(rows)


def named(name: str, names: Mapping[str, str] = NAMES) -> str:
    """A method's name in a table, DeMem's own in bold."""
    return f"**{NAMES[name]}**" if name == "demem" else names.get(name, NAMES[name])


def real_table(folder: Path, *, is_brief: bool) -> str:
    """A metric a row, a method a column: the first seed of each."""
    points = first_seeds(read_points(folder))
    methods = [name for name in NAMES if name in points and name != "original"]
    shown = [points[name] for name in ("original", *methods)]
    rows = [["", "before", "never trained", *map(named, methods)]]
    rows += [measured(m, shown, is_brief=is_brief) for m in REAL_METRICS if m.in_brief or not is_brief]
    rows += relearned(shown)
    rows.append(["steps; minutes", "", "", *(_steps_and_minutes(point) for point in shown[1:])])
    if not is_brief:
        flops = (f"{points[n]['cost']['flops']:.1e}".replace("e+", "e") for n in methods)
        rows.append(["FLOPs of the method", "", "", *flops])
    return markdown(rows)


def headline_table(folder: Path) -> str:
    """The README's: a method a row, the first seed of each; a few metrics, and what chance is."""
    points = first_seeds(read_points(folder))
    original: Summary = points["original"]["summary"]
    metrics = [next(m for m in REAL_METRICS if m.quantity == quantity) for quantity in HEADLINE]
    chance = [m.quantity.replace("forget/", "never/") if m.by_chance else "" for m in metrics]
    rows = [["", *(m.label for m in metrics)]]
    for name in (name for name in NAMES if name in points):
        rows.append(
            [named(name, {"ul": AT_LENGTH["ul"]}), *(cell(m, points[name], original, is_brief=True) for m in metrics)]
        )
        if name == "original":
            never = (m.write(original[c]) if c else "" for m, c in zip(metrics, chance, strict=True))
            rows.append(["never trained: chance", *never])
    return markdown(rows)


def seeds_table(folder: Path) -> str:
    """A metric a row, a training a column: the seeds of every method that has several."""
    points = read_points(folder)
    original = next(p for p in points if p["method"] == "original")
    found = [sorted((p for p in points if p["method"] == name), key=_seed) for name in NAMES]
    trained = [p for seeds in found if len(set(map(_seed, seeds))) > 1 for p in seeds]
    rows = [["", "before", "never trained", *(f"{named(p['method'])}, seed {p['seed']}" for p in trained)]]
    rows += [measured(metric, [original, *trained], is_brief=False) for metric in REAL_METRICS]
    rows += relearned([original, *trained])
    rows.append(["steps; minutes", "", "", *map(_steps_and_minutes, trained)])
    return markdown(rows)


def measured(metric: Metric, points: Sequence[Point], *, is_brief: bool) -> list[str]:
    """A row: the metric's name, what it was before (the first point), what chance is, and what each other point has."""
    original: Summary = points[0]["summary"]
    chance = metric.quantity.replace("forget/", "never/") if metric.by_chance else ""
    cells = [cell(metric, point, original, is_brief=is_brief) for point in points]
    return [metric.label, cells[0], metric.write(original[chance]) if chance else "", *cells[1:]]


def cell(metric: Metric, point: Point, original: Summary, *, is_brief: bool) -> str:
    """One number, with its interval in the long table where it has one."""
    values = {**point["summary"], **derived(point["summary"], original)}
    text = metric.write(values[metric.quantity])
    if not metric.has_interval or is_brief:
        return text
    low, high = (metric.write(end).removesuffix(" %") for end in point["intervals"][metric.quantity])
    return f"{text} [{low}, {high}]"


def relearned(points: Sequence[Point]) -> list[list[str]]:
    """After so many steps on a part of the forget set: how the others come back. The original comes first."""
    rows, steps = [], ", ".join(map(str, relearning_steps(points)))
    for quantity, kind, label in (("exact", "share", "exact"), ("bleu", "score", "BLEU")):
        cells = []
        for point in points:
            values = [number(value, kind) for value in untaught(point, quantity)]
            cells.append(" → ".join(values).replace(" % →", " →"))
        rows.append([f"relearning, {steps} steps: the untaught, {label}", cells[0], "", *cells[1:]])
    return rows


def untaught(point: Point, quantity: str) -> list[float]:
    """Of the forget passages that relearning did not teach, over its steps; [] where nothing was taught again."""
    found = [a for a in point.get("attacks", []) if a["name"].startswith("relearning")]
    return [a["groups"]["forget"][quantity] for a in found if a["name"].endswith("|not taught")]


def _steps_and_minutes(point: Point) -> str:
    return f"{point['notes']['steps']}; {point['cost']['seconds'] / 60:.0f}"


def relearning_steps(points: Sequence[Point]) -> list[int]:
    """After which steps of relearning was measured; [] where it was not."""
    names = [a["name"] for p in points for a in p.get("attacks", []) if a["name"].startswith("relearning steps:")]
    return sorted({int(name.partition(":")[2].partition("|")[0]) for name in names})


TABLES: dict[str, Callable[[Path], str]] = {
    "headline": lambda results: headline_table(results / "smollm2-135m"),
    "lab": lambda results: lab_table(results / "compare"),
    "real-brief": lambda results: real_table(results / "smollm2-135m", is_brief=True),
    "real": lambda results: real_table(results / "smollm2-135m", is_brief=False),
    "real-seeds": lambda results: seeds_table(results / "smollm2-135m"),
    "scale": lambda results: scale_table(),
}


def rewritten(page: str, results: Path) -> str:
    """A page with its tables as the points have them now. ValueError for a table that nobody knows."""

    def fill(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"there is no table {match[2]!r}; known are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]](results)}\n{match[3]}"

    return BLOCK.sub(fill, page)


def main(arguments: Sequence[str]) -> int:
    """Write every page's tables again; 0."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args(arguments)
    for name in PAGES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, ROOT / "results")
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"written: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
