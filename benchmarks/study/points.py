"""The points of the lab study: which there are, what each one asks for, and how long it will take.

    ingredients   every variant at the lab's own size
    size          the recipe and its rival at other numbers of forget records
    repeats       the same two on a lab whose records were repeated less or more (graded.py)
    shapes        a page made from the points of ``ingredients``

A point that is there is not measured again unless it is asked for with other settings. :mod:`eval.points` knows its
file. This module trains nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.study.variants import BOTH, VARIANTS, Variant
from eval.points import stored_points
from unlearning.compare.methods import METHODS
from unlearning.options import PRESETS

Lab = Literal["lab", "graded"]
ORIGINAL = "original"
SIZE = 64  # forget records of the lab
SIZES = (16, 32, 64, 128)  # 128 records were memorised in all; with all of them there is no forget-holdout
PARTS = ("ingredients", "size", "repeats", "shapes")
NUM_SEEDS = 3
MINUTES = {"evaluation": 0.25, "ppo step": 0.092, "distillation step": 0.043, "own text": 0.35, "graded lab": 14.0}
"""On one core. An estimate starts from these where the folder has no point to learn from; they are no result."""
USUAL_STEPS = 48  # of DeMem's recipe until it stops


@dataclass(frozen=True)
class Settings:
    """What all points of a folder have in common.

    share      1: the whole lab; k: a k-th of each group, to try whether the program runs
    most_steps, own_texts   limits of a variant's steps and of its own text; None: the variant's own
    """

    share: int = 1
    num_samples: int = 4
    most_steps: int | None = None
    own_texts: int | None = None
    small_batches: bool = False


QUICK = Settings(share=16, num_samples=1, most_steps=2, own_texts=16, small_batches=True)
SMALL_BATCHES = {"prompts_per_step": 8, "minibatch": 8, "retain_sequences": 2, "retain_tokens": 48}


@dataclass(frozen=True)
class Point:
    """One variant (or "original": the model before unlearning) with one seed, on ``size`` forget records of one lab."""

    variant: str
    size: int = SIZE
    seed: int = 0
    lab: Lab = "lab"

    @property
    def key(self) -> str:
        """Its name among the points of a folder."""
        return f"{self.variant}-n{self.size}-seed{self.seed}" + ("" if self.lab == "lab" else f"-{self.lab}")

    @property
    def original(self) -> Point:
        """The point of the model before unlearning, which this one is compared with."""
        return Point(ORIGINAL, self.size, 0, self.lab)


def plan(parts: Sequence[str], *, seeds: int, variants: Sequence[str] = tuple(VARIANTS)) -> list[Point]:
    """The points of some parts, each once: part by part; in a part the originals first, then seed by seed."""
    points: list[Point] = []
    for part in parts:
        sizes = SIZES if part == "size" else (SIZE,)
        names = [n for n in variants if part == "ingredients" or n in BOTH]
        lab: Lab = "graded" if part == "repeats" else "lab"
        if part == "shapes":
            continue
        points += [Point(ORIGINAL, size, 0, lab) for size in sizes]
        points += [Point(n, size, seed, lab) for seed in range(seeds) for size in sizes for n in names]
    return list(dict.fromkeys(points))


def options_of(variant: Variant, settings: Settings) -> dict[str, Any]:
    """What differs from the default options."""
    options = {**variant.options, "num_samples": settings.num_samples}
    if settings.most_steps is not None:
        options["steps"] = settings.most_steps
    if settings.own_texts is not None:
        options["num_own"] = min(settings.own_texts, options.get("num_own", settings.own_texts))
    return options


def changes_of(variant: Variant, settings: Settings, seed: int) -> dict[str, Any]:
    """What differs from ``ppo.Config``'s defaults."""
    small = SMALL_BATCHES if settings.small_batches else {}
    return {**PRESETS["demem"], **variant.config, **small, "seed": seed}


def distil_steps_of(variant: Variant, settings: Settings) -> int:
    """Steps of distillation at most."""
    most = settings.most_steps if settings.most_steps is not None else variant.distil_steps
    return min(variant.distil_steps, most)


def asked(point: Point, settings: Settings) -> dict[str, Any]:
    """All settings that decide a point's numbers, as plain JSON: what :func:`is_current` compares."""
    what = {**asdict(point), "settings": asdict(settings)}
    if point.variant != ORIGINAL:
        variant = VARIANTS[point.variant]
        what |= {
            "options": options_of(variant, settings),
            "config": changes_of(variant, settings, point.seed),
            "reward": variant.reward,
            "reference": variant.reference,
            "distil_steps": distil_steps_of(variant, settings),
            "distil_retain_weight": METHODS["distil"].default if variant.distil_steps else None,
            "is_trained": variant.is_trained,
        }
    return dict(json.loads(json.dumps(what)))


def is_current(known: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a stored point was measured with the settings that it would be measured with now."""
    try:
        point = Point(*(known["asked"][name] for name in ("variant", "size", "seed", "lab")))
    except (KeyError, TypeError):
        return False
    is_known = point.variant == ORIGINAL or point.variant in VARIANTS
    return is_known and bool(known["asked"] == asked(point, settings))


def read_points(out: Path, settings: Settings) -> list[dict[str, Any]]:
    """The current points of a folder. ValueError for a damaged file, which has to be deleted."""
    return [point for point in stored_points(out) if is_current(point, settings)]


def missing(points: Iterable[Point], found: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The points that are still to be measured, in order."""
    there = {known["key"] for known in found}
    return [point for point in points if point.key not in there]


def minutes(point: Point, found: Sequence[Mapping[str, Any]]) -> float:
    """Minutes of a point on one core: the mean of its variant's points; without any, a sum over its steps."""
    same = [k for k in found if k["asked"]["variant"] == point.variant and k["asked"]["lab"] == point.lab]
    near = [k for k in same if k["asked"]["size"] == point.size] or same
    if near:
        return statistics.fmean(sum(k["seconds"].values()) for k in near) / 60
    if point.variant == ORIGINAL:
        return MINUTES["evaluation"] + (MINUTES["graded lab"] if point.lab == "graded" else 0)
    variant = VARIANTS[point.variant]
    steps = min(variant.options.get("steps", USUAL_STEPS), USUAL_STEPS) if variant.is_trained else 0
    own = MINUTES["own text"] if variant.options.get("num_own", 1) else 0
    work = MINUTES["ppo step"] * steps + MINUTES["distillation step"] * variant.distil_steps
    return MINUTES["evaluation"] + own + work
