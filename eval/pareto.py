"""What a comparison says: means over seeds, distances from chance, which methods have collapsed, which is on the front.

A *point* is one method at one value of its knob with one seed, evaluated. Points of the same method, value and number
of forget records become one :class:`Mean`. Values below the chance floor are damage, so the distance to it counts in
both directions. The target of all unlearning is the exact twin (:data:`TARGET`), trained as the original was, without
the records to forget alone. Where it was measured, the distance to it is reported; it is never a rival. Who beats whom
is said by :mod:`eval.beats`. This module knows numbers. It knows no models, no files and no HTML.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .beats import Contest, Field
from .writing import usual_length

Summary = Mapping[str, float]

EMPTY, SHORT, LOOP, DISTINCT, GARBLED, NLL = 0.2, 1 / 3, 0.3, 0.5, 0.1, 6.0
MAX_EXACT = 0.05  # at matched forgetting, greedy decoding extracts at most this share of the forget records
TARGET = "without-forget"  # the exact twin: the method that unlearning should come close to
MOST_COMPARED = 100  # points of a size that are held against each other, the first ones

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
    "depth_distance": "|Share of right tokens of the suffix on the forget set - on never-trained passages|, under the "
    "same model.",
    "target_distance": "|BLEU of the forget outputs - that of the exact twin|.",
    "target_distance_p": "The same distance for the mean probability of the true token.",
    "target_distance_ma": "The same distance for the share of right tokens of the suffix.",
    "target_distance_ratio": "The same distance for the perplexity ratio.",
    "gen_ppl": "exp of the mean NLL of the forget outputs, without their prefix, under the original model.",
}


def derived(summary: Summary, original: Summary, target: Summary | None = None) -> dict[str, float]:
    """The quantities of ``DERIVED`` that the summaries allow. ``target``: of the exact twin."""
    found = {"fluency": fluency(summary, original)}
    if "holdout/perplexity" in summary and "holdout/perplexity" in original:
        found["perplexity_ratio"] = summary["holdout/perplexity"] / original["holdout/perplexity"]
    if "never/bleu" in original and "never/true_token_p" in original:
        found["floor_distance"] = abs(summary["forget/bleu"] - original["never/bleu"])
        found["floor_distance_p"] = abs(summary["forget/true_token_p"] - original["never/true_token_p"])
    if "depth/ma_suffix" in summary:
        found["depth_distance"] = abs(summary["depth/ma_suffix"])
    if target is not None:
        found["target_distance"] = abs(summary["forget/bleu"] - target["forget/bleu"])
        found["target_distance_p"] = abs(summary["forget/true_token_p"] - target["forget/true_token_p"])
        if "forget/ma_suffix" in summary and "forget/ma_suffix" in target:
            found["target_distance_ma"] = abs(summary["forget/ma_suffix"] - target["forget/ma_suffix"])
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

    ``values`` holds the summary, the derived quantities, and "cost/…": seconds, flops, updates.
    ``collapsed``: rules that most seeds break. ``points``: what it is the mean of. ``is_front``: see :func:`means`.
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
    points: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    is_front: bool = False

    @property
    def label(self) -> str:
        """The name of the method, with its knob and value."""
        return f"{self.method} ({self.knob} {self.value:g})" if self.knob else self.method

    def get(self, name: str) -> float | None:
        """A mean, or None where it was not measured."""
        return self.values.get(name)


def means(points: Sequence[Mapping[str, Any]]) -> list[Mean]:
    """The means of some points, in the order of the points. Each is compared with its size's point of kind "original".

    A training-time mean is on the front if it is at matched forgetting, has not collapsed, and no other such mean beats
    it (:class:`eval.beats.Contest`). ValueError where a size has no such point.
    """
    originals = {p["size"]: p["summary"] for p in points if p["kind"] == "original"}
    sizes = {p["size"] for p in points if p["method"] == TARGET}
    targets = {s: _mean_summary([p for p in points if p["method"] == TARGET and p["size"] == s]) for s in sizes}
    groups: dict[tuple[str, float, int], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["size"] not in originals:
            raise ValueError(f"there is no point of the original model for {point['size']} forget records")
        groups.setdefault((point["method"], point["value"], point["size"]), []).append(point)
    found = [_mean(group, originals[size], targets.get(size)) for (_, _, size), group in groups.items()]
    ahead = {id(m) for size in originals for m in _front([m for m in found if m.size == size])}
    return [replace(m, is_front=True) if id(m) in ahead else m for m in found]


def contest(all_means: Sequence[Mean], size: int) -> Contest:
    """Who beats whom among the means of one number of records, held against their original and the exact twin."""
    own = [m for m in all_means if m.size == size]
    original = next(m for m in own if m.kind == "original")
    twins = next((m.points for m in own if m.method == TARGET), ())
    return Contest(Field(original.points[0], twins))


def _front(own: Sequence[Mean]) -> list[Mean]:
    """The means of one size that are on the front. One whose points hold no single passages is not."""
    rivals = [m for m in matched(own) if m.kind == "training" and not m.collapsed][:MOST_COMPARED]
    if not rivals:
        return []
    held = contest(own, own[0].size)
    able = [m for m in rivals if held.is_measured(m.points)]
    return [m for m in able if not any(held.duel(r.points, m.points).outcome == "beats" for r in able if r is not m)]


def _mean_summary(points: Sequence[Mapping[str, Any]]) -> Summary:
    """The means of the quantities that all points have."""
    rows = [p["summary"] for p in points]
    return {name: statistics.fmean(r[name] for r in rows) for name in rows[0] if all(name in r for r in rows)}


def _mean(points: Sequence[Mapping[str, Any]], original: Summary, target: Summary | None) -> Mean:
    rows = [
        {**p["summary"], **p.get("paper", {}), **derived(p["summary"], original, target),
         "cost/seconds": p["cost"]["seconds"], "cost/flops": p["cost"]["flops"], **_updates(p), **attacked(p)}
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
        tuple(name for name in COLLAPSE_RULES if 2 * broken.count(name) > len(points)), tuple(points),
    )  # fmt: skip


def _updates(point: Mapping[str, Any]) -> dict[str, float]:
    """The optimiser updates of a training, where its point has a budget."""
    return {"cost/updates": float(point["budget"]["updates"])} if point.get("budget") else {}


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


def matched(all_means: Sequence[Mean]) -> list[Mean]:
    """The means at matched forgetting: greedy extraction of at most 5 % of the forget set."""
    return [m for m in all_means if m.values["forget/exact"] <= MAX_EXACT]


def target(all_means: Sequence[Mean], size: int) -> Mean | None:
    """The exact twin, for a number of forget records; None if it was not measured."""
    return next((m for m in all_means if m.method == TARGET and m.size == size), None)
