"""What ``demem.py compare`` is asked for: the methods, their seeds and values, and what it gives all of them alike.

This module knows the methods' names, knobs and kinds. It trains and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from ppo.io.fields import check_types, require
from unlearning.compare.methods import METHODS, Method
from unlearning.compare.terms import ROWS, Terms, updates_a_step
from unlearning.options import PRESETS

ON_REQUEST = (
    "original",
    "demem-lora",
    "paper",
    "paper-as-run",
    "distil-deep",
    "kl-deep",
    "grpo",
    "undial",
    "wga",
    "satimp",
    "jensun",
    "rmu",
    "undo",
    "dpo",
    "dpo-swapped",
)  # by name alone; the first is always there


@dataclass(frozen=True)
class Comparison:
    """What is compared. :class:`Options` and :class:`ppo.Config` hold everything else."""

    methods: str = ",".join(m for m in METHODS if m not in ON_REQUEST)  # names with commas between them
    seeds: int = 3  # trainings of every method that takes a seed, from --seed on
    twin_seeds: int | None = None  # trainings of retain-only and dedup, minutes each; none: as many as --seeds
    knobs: Literal["all", "one", "tuned"] = "all"  # all values of a method, its default, or the best on other passages
    sizes: str = ""  # numbers of forget records, such as 32,64; none: all that the data has
    most_holdout: int | None = None  # passages of forget-holdout that are measured; none: all
    updates: int | None = None  # optimiser updates of every training, none of which ends early; none: its own number
    update_rows: int | None = None  # rows to forget in each update, with --updates; none: 16
    forget_on: Literal["passage", "suffix"] = "passage"  # what all that train forget: windows of the passage, or that
    baseline_rate: float | None = None  # learning rate of the baselines that keep text; none: what the lab takes
    twins: str | None = None  # folder of the lab's retrained twins, for several comparisons; none: twins in --out

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("seeds", "twin_seeds", "most_holdout", "updates", "update_rows"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, self, name, "must be at least 1")
        require(self.baseline_rate is None or self.baseline_rate > 0, self, "baseline_rate", "must be above 0")
        require(self.update_rows is None or self.updates is not None, self, "update_rows", "goes with --updates")
        for name in self.names:
            require(name in METHODS, self, "methods", f"names {name!r}; known are {', '.join(METHODS)}")
            is_half = name != "undo" or self.updates != 1
            require(is_half, self, "updates", "must be at least 2 with undo, whose two trainings share them")
        for size in self.sizes.split(",") if self.sizes else []:
            require(size.strip().isdigit() and int(size) > 0, self, "sizes", "must be whole numbers above 0")

    @property
    def names(self) -> list[str]:
        """The methods that were asked for, in that order and each once, the original first."""
        asked = [name.strip() for name in self.methods.split(",") if name.strip()]
        return ["original", *(n for n in dict.fromkeys(asked) if n != "original")]

    @property
    def terms(self) -> Terms:
        """What every method that trains gets alike."""
        return Terms(self.updates, self.update_rows or ROWS, self.forget_on)

    def num_seeds(self, method: Method) -> int:
        """The number of trainings that a method gets. Ascent draws the order of its rows alone, and not of them all."""
        if not method.is_seeded and not (method.kind == "training" and (self.updates or self.forget_on == "passage")):
            return 1
        return (self.twin_seeds or self.seeds) if method.kind == "retraining" else self.seeds

    def values(self, name: str) -> tuple[float, ...]:
        """The values of a method's knob. A number of steps that --updates settles is the only one."""
        method = METHODS[name]
        if self.updates is not None and method.knob == "steps":
            return (self.updates / updates_a_step(PRESETS[method.preset]),)
        return method.values if self.knobs != "one" else (method.default,)

    def shared(self) -> dict[str, Any]:
        """The settings that all points of a folder share."""
        names = ("baseline_rate", "most_holdout", "updates", "update_rows")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return own | {"forget_on": self.forget_on} | ({"knobs": "tuned"} if self.knobs == "tuned" else {})


@dataclass(frozen=True)
class Point:
    """One method at one value of its knob, with one seed and one number of forget records."""

    name: str
    value: float
    seed: int
    size: int

    @property
    def key(self) -> str:
        """The name of its file without the ending."""
        value = f"-{METHODS[self.name].knob}-{self.value:g}" if METHODS[self.name].knob else ""
        return f"{self.name}{value}-n{self.size}-seed{self.seed}"


def plan(comparison: Comparison, seed: int, size: int, best: Mapping[str, float] = MappingProxyType({})) -> list[Point]:
    """The points in the order of the work: each method with its default and one seed first, then the rest.

    ``best``: the tuned value of a method, which then has no other.
    """
    points = []
    for place, name in enumerate(comparison.names):
        method = METHODS[name]
        for value in (best[name],) if name in best else comparison.values(name):
            for k in range(comparison.num_seeds(method)):
                points.append((k, value != method.default, place, Point(name, value, seed + k, size)))
    return [point for *_, point in sorted(points, key=lambda row: row[:3])]
