"""The points of the lab study as rows: seeds side by side, derived quantities, and differences between rows.

A *row* is one variant at one size on one lab, with a value of every quantity for each seed. This module knows numbers.
It knows no models, no files and no pages.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.study.points import ORIGINAL
from eval.pareto import COLLAPSE_RULES, collapse, derived
from unlearning.compare.methods import BALANCED

LOWER_IS_BETTER = {
    "forget/exact": True,
    "forget/exact_sampled": True,
    "forget/discoverable": True,
    "forget_holdout/exact": True,
    "forget_holdout/exact_sampled": True,
    "forget_holdout/discoverable": True,
    "keep/exact": False,
    "perplexity_ratio": True,
    "floor_distance": True,
    "floor_distance_p": True,
    "fluency": False,
}
"""The quantities that are compared, and whether less is better."""


@dataclass(frozen=True)
class Row:
    """``values``: quantity to one number a seed. ``parts``: "kind" or "repeats" to "group/what" to quantity to numbers.

    ``broken``: seeds whose training broke off; they have no numbers. ``collapsed``: rules that most seeds break.
    """

    variant: str
    size: int
    lab: str
    values: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    broken: int = 0
    collapsed: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        """Number of seeds that were measured, without those that broke off."""
        return max(map(len, self.values.values()), default=0)


def make_rows(points: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of some points, in the order of the points. A point without its original is left out."""
    originals = {_place(p): p["summary"] for p in points if p["asked"]["variant"] == ORIGINAL}
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for point in points:
        if _place(point) in originals:
            groups.setdefault((point["asked"]["variant"], *_place(point)), []).append(point)
    return [_row(*key, members, originals[key[1:]]) for key, members in groups.items()]


def _place(point: Mapping[str, Any]) -> tuple[int, str]:
    return point["asked"]["size"], point["asked"]["lab"]


def _row(variant: str, size: int, lab: str, points: Sequence[Mapping[str, Any]], original: Mapping[str, float]) -> Row:
    whole = [p for p in sorted(points, key=lambda p: p["asked"]["seed"]) if not p["error"]]
    numbers = [
        {**p["summary"], **derived(p["summary"], original), **effort(p), "minutes": sum(p["seconds"].values()) / 60}
        for p in whole
    ]  # fmt: skip
    parts: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in ("kind", "repeats"):
        tables = [p["parts"].get(name, {}) for p in whole]
        labels = list(dict.fromkeys(label for table in tables for label in table))
        parts[name] = {label: _columns([table[label] for table in tables if label in table]) for label in labels}
    rules = [rule for p in whole for rule in collapse(p["summary"], original)]
    collapsed = tuple(rule for rule in COLLAPSE_RULES if 2 * rules.count(rule) > len(whole))
    return Row(variant, size, lab, _columns(numbers), parts, len(points) - len(whole), collapsed)


def effort(point: Mapping[str, Any]) -> dict[str, float]:
    """What a training did: its steps, its updates of the weights, and how often it met a record to forget ("visits").

    "cap" is 1 where the number of steps ended the training, 0 where the stopping rule did. A step of distillation is
    one update over up to 32 records. A PPO step is several updates over responses to prompts; a prompt is a window of
    one record.
    """
    steps, config, size = point["steps"], point["config"] or {}, point["asked"]["size"]
    distilled, ppo = steps.get("distillation", 0), steps.get("ppo", 0)
    found = {"steps": float(distilled + ppo), "updates": float(distilled), "visits": 0.0, "cap": 0.0}
    if distilled:
        found["visits"] += distilled * min(BALANCED.batch or size, size) / size
        found["cap"] = float(distilled >= point["asked"].get("distil_steps", 0))
    if ppo:
        responses = config["prompts_per_step"] * config["samples_per_prompt"]
        found["updates"] += ppo * config["epochs"] * math.ceil(responses / config["minibatch"])
        found["visits"] += ppo * responses / size
        found["cap"] = float(not steps.get("is_stopped", False))
    return found


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Quantity to its value in every row that has it."""
    return {name: [float(row[name]) for row in rows if name in row] for name in (rows[0] if rows else {})}


def better_and_worse(row: Row, base: Row) -> tuple[list[str], list[str]]:
    """The quantities in which all seeds of ``row`` are better, and those in which all are worse, than all of ``base``.

    With three seeds each, this happens to one quantity in ten by chance.
    """
    better, worse = [], []
    for name, is_lower_better in LOWER_IS_BETTER.items():
        ours, theirs = row.values.get(name), base.values.get(name)
        if not ours or not theirs:
            continue
        if max(ours) < min(theirs):
            (better if is_lower_better else worse).append(name)
        elif min(ours) > max(theirs):
            (worse if is_lower_better else better).append(name)
    return better, worse


def as_good_as_both(row: Row, rivals: Iterable[Row]) -> tuple[list[str], list[str]]:
    """The quantities in which the mean of ``row`` is as good as that of its best rival, and those in which it is not.

    A quantity in which all means are equal tells nothing and is left out.
    """
    rivals = list(rivals)
    good, short = [], []
    for name, is_lower_better in LOWER_IS_BETTER.items():
        known = [statistics.fmean(r.values[name]) for r in rivals if r.values.get(name)]
        if not row.values.get(name) or not known:
            continue
        mean = statistics.fmean(row.values[name])
        if {mean} == set(known):
            continue
        is_good = mean <= min(known) if is_lower_better else mean >= max(known)
        (good if is_good else short).append(name)
    return good, short
