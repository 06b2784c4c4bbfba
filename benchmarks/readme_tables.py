"""The result tables of the README and of ``results/``, written from the measured points: no number is typed by hand.

    python -m benchmarks.readme_tables          # after new points; the tests fail while a page says anything else

In a page a table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; ``TABLES`` knows the names.
This module measures nothing.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.pareto import collapse, derived
from ppo.files import read_json

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "results/smollm2-135m/README.md")
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->\n)", flags=re.DOTALL)

Point = Mapping[str, Any]
Summary = Mapping[str, float]

LAB_METHODS = {
    "original": "before",
    "demem": "**DeMem**",
    "distil": "distillation to the counterfactual reference",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "graddiff": "gradient difference",
    "ul": "UL (gradient ascent)",
    "paper": "the paper's reward and hyper-parameters",
    "paper-as-run": "… as its notebook ran: four batches",
    "memfree": "MemFree decoding, the model as it was",
    "retain-only": "trained without the records: the target",
}
REAL_METHODS = {
    "demem": "**DeMem**",
    "demem-lora": "DeMem, LoRA",
    "distil": "distillation",
    "npo": "NPO",
    "ul": "UL",
    "paper-as-run": "the notebook",
}


# ---------------------------------------------------------------------- how numbers are written


def percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def plain(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def times(value: float) -> str:
    return f"\N{MULTIPLICATION SIGN} {value:.3f}"


@dataclass(frozen=True)
class Metric:
    """``quantity`` of a summary, or derived from it, and how it is written; ``in_brief``: also in the short table.

    ``by_chance``: whether the same of the never-trained passages says what chance is. ``has_interval``: of 95 %.
    """

    label: str
    quantity: str
    write: Callable[[float], str] = percent
    in_brief: bool = False
    by_chance: bool = True
    has_interval: bool = False


LAB_COLUMNS = (
    Metric("forget, sampled", "forget/exact_sampled"),
    Metric("forget-holdout, sampled", "forget_holdout/exact_sampled"),
    Metric("records to keep", "keep/exact"),
    Metric("perplexity", "perplexity_ratio", times),
    Metric("p(true token)", "forget/true_token_p", plain(2)),
    Metric("membership, AUC", "membership/loss_auc", plain(2)),
    Metric("fluency", "fluency", plain(2)),
)
REAL_METRICS = (
    Metric("greedy exact extraction", "forget/exact", in_brief=True, has_interval=True),
    Metric("… with the pre-prefix in front", "forget/exact_long"),
    Metric("… after 12 more true tokens", "forget/exact_after_12"),
    Metric("… in one sample at temperature 1", "forget/exact_sampled", in_brief=True),
    Metric("(n,p): 100 samples, with a probability of 50 %", "forget/discoverable", in_brief=True),
    Metric("approximate: BLEU of 75 and more", "forget/approximate"),
    Metric("N-BLEU", "forget/n_bleu", plain(1), in_brief=True, has_interval=True),
    Metric("extraction strength (ES)", "forget/extraction_strength", plain(2), in_brief=True),
    Metric("memorisation accuracy (MA)", "forget/ma"),
    Metric("extraction likelihood (EL₁₀)", "forget/el_10", plain(2), in_brief=True),
    Metric("probability of the true token", "forget/true_token_p", plain(2), in_brief=True),
    Metric("membership, AUC by loss", "membership/loss_auc", plain(2), in_brief=True, by_chance=False),
    Metric("… by min-k %++", "membership/min_k_plus_plus_auc", plain(2), by_chance=False),
    Metric("forget-holdout: greedy exact", "forget_holdout/exact", in_brief=True, by_chance=False),
    Metric("… in one sample", "forget_holdout/exact_sampled", by_chance=False),
    Metric("… (n,p)", "forget_holdout/discoverable", by_chance=False),
    Metric("held-out perplexity", "perplexity_ratio", times, in_brief=True, by_chance=False),
    Metric("NLL of the never-trained passages", "never/nll_suffix", plain(2), in_brief=True, by_chance=False),
    Metric("cloze accuracy", "utility/cloze", in_brief=True, by_chance=False),
    Metric("distinct bigrams / the truth's", "forget/distinct_2_ratio", plain(2), in_brief=True),
    Metric("tokens in loops", "forget/loop"),
)


# ---------------------------------------------------------------------- the tables


def read_points(folder: Path) -> list[Point]:
    """The points of a comparison, at the default of their knobs."""
    points = [read_json(file) for file in sorted((folder / "points").glob("*.json"))]
    return [p for p in points if p["is_default"] or p["kind"] == "original"]


def lab_table(folder: Path) -> list[str]:
    """A method a row, means over its seeds."""
    points = read_points(folder)
    original = next(p["summary"] for p in points if p["method"] == "original")
    rows = [["", "seeds", *(m.label for m in LAB_COLUMNS), "collapsed"]]
    for name, label in LAB_METHODS.items():
        members = [p for p in points if p["method"] == name]
        if not members:
            continue
        numbers = [{**p["summary"], **derived(p["summary"], original)} for p in members]
        cells = [m.write(statistics.fmean(n[m.quantity] for n in numbers)) for m in LAB_COLUMNS]
        fallen = sum(bool(collapse(p["summary"], p["kind"])) for p in members) if name in _TRAINED else 0
        count = str(len(members)) if name not in ("original", "memfree") else ""
        rows.append([label, count, *cells, f"{fallen} of {len(members)}" if fallen else ""])
    return markdown(rows)


_TRAINED = set(LAB_METHODS) - {"original", "retain-only", "memfree"}


def real_table(folder: Path, *, is_brief: bool) -> list[str]:
    """A metric a row, a method a column: one seed each."""
    points = {p["method"]: p for p in read_points(folder)}
    original = points["original"]["summary"]
    methods = [name for name in REAL_METHODS if name in points]
    rows = [["", "before", "never trained", *(REAL_METHODS[name] for name in methods)]]
    for metric in REAL_METRICS:
        if metric.in_brief or not is_brief:
            chance = metric.quantity.replace("forget/", "never/") if metric.by_chance else ""
            cells = [cell(metric, points[name], original, is_brief=is_brief) for name in ("original", *methods)]
            rows.append([metric.label, cells[0], metric.write(original[chance]) if chance else "", *cells[1:]])
    rows += relearned(points, methods)
    rows.append(["steps; minutes", "", "", *(f"{points[n]['notes']['steps']}; {_minutes(points[n])}" for n in methods)])
    if not is_brief:
        flops = (f"{points[n]['cost']['flops']:.1e}".replace("e+", "e") for n in methods)
        rows.append(["FLOPs of the method", "", "", *flops])
    return markdown(rows)


def cell(metric: Metric, point: Point, original: Summary, *, is_brief: bool) -> str:
    """One number, with its interval in the long table where it has one."""
    values = {**point["summary"], **derived(point["summary"], original)}
    text = metric.write(values[metric.quantity])
    if not metric.has_interval or is_brief:
        return text
    low, high = (metric.write(end).removesuffix(" %") for end in point["intervals"][metric.quantity])
    return f"{text} [{low}, {high}]"


def relearned(points: Mapping[str, Point], methods: Sequence[str]) -> list[list[str]]:
    """After so many steps on a part of the forget set: how the others come back."""
    rows = []
    for quantity, write, label in (("exact", percent, "exact"), ("bleu", plain(1), "BLEU")):
        cells = []
        for name in ("original", *methods):
            cells.append(" → ".join(map(write, untaught(points[name], quantity))).replace(" % →", " →"))
        rows.append([f"relearning, 0, 5, 10 steps: the untaught, {label}", cells[0], "", *cells[1:]])
    return rows


def untaught(point: Point, quantity: str) -> list[float]:
    """Of the forget passages that relearning did not teach, over its steps; [] where nothing was taught again."""
    found = [a for a in point.get("attacks", []) if a["name"].startswith("relearning")]
    return [a["groups"]["forget"][quantity] for a in found if a["name"].endswith("|not taught")]


def _minutes(point: Point) -> str:
    return f"{point['cost']['seconds'] / 60:.0f}"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines; the first row is its head."""
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "lab": lambda results: lab_table(results / "compare"),
    "real-brief": lambda results: real_table(results / "smollm2-135m", is_brief=True),
    "real": lambda results: real_table(results / "smollm2-135m", is_brief=False),
}


def rewritten(page: str, results: Path) -> str:
    """A page with its tables as the points have them now. ValueError for a table that nobody knows."""

    def fill(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"there is no table {match[2]!r}; known are {', '.join(TABLES)}")
        return match[1] + "".join(f"{line}\n" for line in TABLES[match[2]](results)) + match[3]

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
