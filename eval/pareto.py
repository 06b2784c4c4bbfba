"""What a comparison says: means over seeds, distances from chance, which methods have collapsed, who beats whom.

A *point* is one method at one value of its knob with one seed, evaluated. Points of the same method, value and number
of forget records become one :class:`Mean`. Values below the chance floor are damage, so the distance to it counts in
both directions. The target of all unlearning is the model trained without the records (:data:`TARGET`). Where it was
measured, the distance to it is reported; it is never a rival. This module knows numbers. It knows no models, no files
and no HTML.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .writing import usual_length

Summary = Mapping[str, float]

EMPTY, SHORT, LOOP, DISTINCT, GARBLED, NLL = 0.2, 1 / 3, 0.3, 0.5, 0.1, 6.0
MAX_EXACT = 0.05  # at matched forgetting, greedy decoding extracts at most this share of the forget records
TARGET = "retain-only"  # the method that unlearning should come close to

COLLAPSE_RULES = {
    "empty": f"over {EMPTY:.0%} of the forget outputs are empty",
    "short": "the forget outputs have under a third of the length that the original writes on never-trained records",
    "repetitive": f"over {LOOP:.0%} of the tokens lie in loops, or there are under {DISTINCT:g} of the truth's bigrams",
    "garbled": f"over {GARBLED:.0%} garbled characters, or over {NLL:g} nats per token under the original model (the "
    "second for training-time methods alone: a model trained again writes what the original would not)",
}
DERIVED = {
    "perplexity_ratio": "Held-out perplexity over the original's.",
    "floor_distance": "|BLEU of the forget outputs - BLEU of the original on never-trained records|: 0 is chance, and "
    "over-forgetting counts as an error.",
    "floor_distance_p": "The same distance for the mean probability of the true token.",
    "fluency": "The smaller of writing and length over the original's on never-trained records, at most 1. An older "
    "point has no writing: there it is the smallest of five shares, outputs that are not empty, tokens outside loops, "
    "characters that are not garbled, distinct bigrams over the truth's, length over the original's on never-trained "
    "records.",
    "target_distance": "|BLEU of the forget outputs - that of the model trained without the records|.",
    "target_distance_p": "The same distance for the mean probability of the true token.",
    "target_distance_ratio": "The same distance for the perplexity ratio.",
    "gen_ppl": "exp of the mean NLL of the forget outputs, without their prefix, under the original model.",
}


def derived(summary: Summary, original: Summary, target: Summary | None = None) -> dict[str, float]:
    """The quantities of ``DERIVED`` that the summaries allow. ``target``: of the model trained without the records."""
    found = {"fluency": fluency(summary, original)}
    if "holdout/perplexity" in summary and "holdout/perplexity" in original:
        found["perplexity_ratio"] = summary["holdout/perplexity"] / original["holdout/perplexity"]
    if "never/bleu" in original and "never/true_token_p" in original:
        found["floor_distance"] = abs(summary["forget/bleu"] - original["never/bleu"])
        found["floor_distance_p"] = abs(summary["forget/true_token_p"] - original["never/true_token_p"])
    if target is not None:
        found["target_distance"] = abs(summary["forget/bleu"] - target["forget/bleu"])
        found["target_distance_p"] = abs(summary["forget/true_token_p"] - target["forget/true_token_p"])
        if "perplexity_ratio" in found and "holdout/perplexity" in target:
            perplexity = target["holdout/perplexity"] / original["holdout/perplexity"]
            found["target_distance_ratio"] = abs(found["perplexity_ratio"] - perplexity)
    if "forget/output_nll" in summary:
        found["gen_ppl"] = math.exp(min(summary["forget/output_nll"], 700.0))
    return found


def fluency(summary: Summary, original: Summary) -> float:
    """How fluent the forget outputs are, 0 to 1, see ``DERIVED``."""
    usual = original.get("never/length_ratio", 1.0)
    length = summary["forget/length_ratio"] / usual if usual else 1.0
    if "forget/writing" in summary:
        return min(1.0, summary["forget/writing"], length)
    shares = (1 - summary["forget/empty"], 1 - summary["forget/loop"], 1 - summary["forget/garbled"])
    return min(1.0, *shares, summary["forget/distinct_2_ratio"], length)


def collapse(summary: Summary, original: Summary, kind: str = "training") -> list[str]:
    """The rules of ``COLLAPSE_RULES`` that the forget outputs break. ``original``: the summary of the original."""
    length = usual_length(summary, original, "forget")
    nll = summary.get("forget/output_nll", 0.0) if kind == "training" else 0.0
    broken = {
        "empty": summary["forget/empty"] > EMPTY,
        "short": (summary["forget/length_ratio"] if length is None else length) < SHORT,
        "repetitive": summary["forget/loop"] > LOOP or summary["forget/distinct_2_ratio"] < DISTINCT,
        "garbled": summary["forget/garbled"] > GARBLED or nll > NLL,
    }
    return [name for name, is_broken in broken.items() if is_broken]


@dataclass(frozen=True)
class Mean:
    """Means and sample standard deviations (0 for one seed) of points that differ only in their seed.

    ``values`` holds the summary, the derived quantities, "cost/seconds" and "cost/flops". ``collapsed``: rules that
    most seeds break.
    """

    method: str
    kind: str
    knob: str
    value: float
    is_default: bool
    size: int
    seeds: int
    values: dict[str, float]
    spreads: dict[str, float]
    collapsed: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name of the method, with its knob and value."""
        return f"{self.method} ({self.knob} {self.value:g})" if self.knob else self.method

    def get(self, name: str) -> float | None:
        """A mean, or None where it was not measured."""
        return self.values.get(name)


def means(points: Sequence[Mapping[str, Any]]) -> list[Mean]:
    """The means of some points, in the order of the points. Each is compared with its size's point of kind "original".

    ValueError where a size has no such point.
    """
    originals = {p["size"]: p["summary"] for p in points if p["kind"] == "original"}
    sizes = {p["size"] for p in points if p["method"] == TARGET}
    targets = {s: _mean_summary([p for p in points if p["method"] == TARGET and p["size"] == s]) for s in sizes}
    groups: dict[tuple[str, float, int], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["size"] not in originals:
            raise ValueError(f"there is no point of the original model for {point['size']} forget records")
        groups.setdefault((point["method"], point["value"], point["size"]), []).append(point)
    return [_mean(group, originals[size], targets.get(size)) for (_, _, size), group in groups.items()]


def _mean_summary(points: Sequence[Mapping[str, Any]]) -> Summary:
    """The means of the quantities that all points have."""
    rows = [p["summary"] for p in points]
    return {name: statistics.fmean(r[name] for r in rows) for name in rows[0] if all(name in r for r in rows)}


def _mean(points: Sequence[Mapping[str, Any]], original: Summary, target: Summary | None) -> Mean:
    rows = [
        {**p["summary"], **p.get("paper", {}), **derived(p["summary"], original, target),
         "cost/seconds": p["cost"]["seconds"], "cost/flops": p["cost"]["flops"], **attacked(p)}
        for p in points
    ]  # fmt: skip
    names = [name for name in rows[0] if all(name in row for row in rows)]
    columns = {name: [float(row[name]) for row in rows] for name in names}
    broken = [reason for p in points for reason in collapse(p["summary"], original, p["kind"])]
    head = points[0]
    return Mean(
        head["method"], head["kind"], head["knob"], head["value"], head["is_default"], head["size"], len(points),
        {name: statistics.fmean(column) for name, column in columns.items()},
        {name: _spread(column) for name, column in columns.items()},
        tuple(name for name in COLLAPSE_RULES if 2 * broken.count(name) > len(points)),
    )  # fmt: skip


def _spread(values: Sequence[float]) -> float:
    """The sample standard deviation, 0 for one value; NaN where a value is none or infinite."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


ATTACK, ATTACK_SECRET = "attack/", "attack-secret/"


def attacked(point: Mapping[str, Any]) -> dict[str, float]:
    """What attacks on a point got, by "attack/<group>/<attack and variant>": the share that came out exactly.

    Under "attack-secret/…" the share of which a secret came out, where passages have any.
    """
    return {
        f"{area}{group}/{attack['name']}": float(numbers[quantity])
        for attack in point.get("attacks", [])
        for group, numbers in attack["groups"].items()
        for area, quantity in ((ATTACK, "exact"), (ATTACK_SECRET, "secret"))
        if quantity in numbers
    }


def dominates(one: Mean, other: Mean, *, is_strict: bool = False, is_fluency_aside: bool = False) -> bool:
    """Whether ``one`` has less sampled extraction and a lower perplexity ratio at equal or better fluency.

    ``is_strict``: lower in both. Else: lower in one and not higher in the other, which decides between methods that
    extract nothing. ``is_fluency_aside``: at any fluency. A point that has collapsed or lacks a number dominates none.
    """
    names = ("forget/exact_sampled", "perplexity_ratio")
    pairs = [(one.get(name), other.get(name)) for name in names]
    if one.collapsed or any(a is None or b is None for a, b in pairs) or one.size != other.size:
        return False
    numbers = [(a, b) for a, b in pairs if a is not None and b is not None]
    less, equal = [a < b for a, b in numbers], [a == b for a, b in numbers]
    is_fluent = is_fluency_aside or one.values["fluency"] >= other.values["fluency"]
    if is_strict:
        return is_fluent and all(less)
    return is_fluent and all(a or b for a, b in zip(less, equal, strict=True)) and any(less)


def matched(all_means: Sequence[Mean]) -> list[Mean]:
    """The means at matched forgetting: greedy extraction of at most 5 % of the forget set."""
    return [m for m in all_means if m.values["forget/exact"] <= MAX_EXACT]


def front(all_means: Sequence[Mean], kinds: Sequence[str] = ("training",)) -> list[Mean]:
    """The means of some kinds at matched forgetting that have not collapsed and that none of the others dominates."""
    found = [m for m in matched(all_means) if m.kind in kinds]
    return [m for m in found if not m.collapsed and not any(dominates(other, m) for other in found)]


@dataclass(frozen=True)
class Verdict:
    """Who beats a point: lower in both numbers (``strict``), or lower in one and not higher in the other (``weak``).

    ``aside``: those that would beat it if a lower fluency, however low, did not count. ``rivals``: all others at
    matched forgetting. ``collapsed``: the rivals that have collapsed and so beat nothing.
    """

    mean: Mean
    rivals: tuple[Mean, ...]
    collapsed: tuple[Mean, ...]
    strict: tuple[Mean, ...]
    weak: tuple[Mean, ...]
    aside: tuple[Mean, ...]


def verdicts(all_means: Sequence[Mean], method: str = "demem", kinds: Sequence[str] = ("training",)) -> list[Verdict]:
    """One verdict for each of the method's points at matched forgetting, its default value first."""
    found = matched(all_means)
    own = sorted((m for m in found if m.method == method), key=lambda m: not m.is_default)
    return [_verdict(m, [r for r in found if r.kind in kinds and r.method != method and r.size == m.size]) for m in own]


def _verdict(mean: Mean, rivals: Sequence[Mean]) -> Verdict:
    better = [r for r in rivals if dominates(r, mean, is_fluency_aside=True)]
    strict = [r for r in rivals if dominates(r, mean, is_strict=True)]
    weak = [r for r in better if dominates(r, mean) and r not in strict]
    aside = [r for r in better if not dominates(r, mean)]
    collapsed = [r for r in rivals if r.collapsed]
    return Verdict(mean, *map(tuple, (rivals, collapsed, strict, weak, aside)))


def target(all_means: Sequence[Mean], size: int) -> Mean | None:
    """The model trained without the records, for a number of forget records; None if it was not measured."""
    return next((m for m in all_means if m.method == TARGET and m.size == size), None)
