"""``python demem.py compare``: DeMem and what it has to be compared with, on the same passages, by the same evaluation.

    python demem.py compare --methods demem,ul,npo,distil --seeds 3 --out runs/compare

Every point (method, value of its knob, seed, number of forget records) is one JSON file under ``points/``, written
whole or not at all. The same command goes on where it was stopped. It may add methods, seeds, knobs or sizes; other
settings than those that the folder was begun with are an error.

    compare.json   the settings that all points share      points/  a point a file: summary with intervals, signatures
                                                           and settings, cost, where it comes from
    compare.html, compare.md, compare.tex   the tables     twins/   the lab's models without the records

Every evaluation samples with the same random numbers; seeds differ in training alone. This module knows the order of
the work. unlearning/compare/methods.py knows the methods.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ppo
from data.study import Study
from eval import secrets
from eval.attacks.relearning import count_taught
from eval.compared import check_point, compared_points
from eval.points import find_point, place_of, read_point, store_point
from eval.report.comparison.page import write_pages
from eval.results import check_folder, write_json
from models.lab.recipe import Recipe
from ppo.distributed import Processes
from ppo.io.fields import check_types, require
from ppo.io.files import read_json
from ppo.io.options import given_values
from ppo.io.visible import visible
from unlearning.attack import Attacker, AttackOptions
from unlearning.compare.bench import Inputs, UnlearnedModel
from unlearning.compare.measure import measure
from unlearning.compare.methods import METHODS, Method
from unlearning.compare.retrained import RetrainedModels
from unlearning.compare.unlearn import Train, Unlearn, settings_of
from unlearning.floor import chance_floor
from unlearning.options import PRESETS, Options
from unlearning.run import Run, load_run, say

Keep = Callable[[Run], list[list[int]]]
PARTS = ("options", "config", "comparison")  # of compare.json
ON_REQUEST = (
    "original",
    "deep",
    "demem-lora",
    "paper",
    "paper-as-run",
    "distil-deep",
    "without-forget",
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
    knobs: Literal["all", "one"] = "all"  # three values of each method's knob, or its default alone
    sizes: str = ""  # numbers of forget records, such as 32,64; none: all that the data has
    most_holdout: int | None = None  # passages of forget-holdout that are measured; none: all
    baseline_rate: float | None = None  # learning rate of the baselines that keep text; none: what the lab takes
    twins: str | None = None  # folder of the lab's retrained twins, for several comparisons; none: twins in --out

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("seeds", "twin_seeds", "most_holdout"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, self, name, "must be at least 1")
        require(self.baseline_rate is None or self.baseline_rate > 0, self, "baseline_rate", "must be above 0")
        for name in self.names:
            require(name in METHODS, self, "methods", f"names {name!r}; known are {', '.join(METHODS)}")
        for size in self.sizes.split(",") if self.sizes else []:
            require(size.strip().isdigit() and int(size) > 0, self, "sizes", "must be whole numbers above 0")

    @property
    def names(self) -> list[str]:
        """The methods that were asked for, in that order and each once, the original first."""
        asked = [name.strip() for name in self.methods.split(",") if name.strip()]
        return ["original", *(n for n in dict.fromkeys(asked) if n != "original")]

    def num_seeds(self, method: Method) -> int:
        """The number of trainings that a method gets."""
        if not method.is_seeded:
            return 1
        return (self.twin_seeds or self.seeds) if method.kind == "retraining" else self.seeds


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


def compare(parsed: argparse.Namespace, *, train: Train, text_to_keep: Keep) -> None:
    """Measure the points that are missing, one after another, then write the page.

    ``train`` and ``text_to_keep`` are DeMem's own.
    """
    comparison = Comparison(**given_values(parsed, Comparison))
    given, changes = given_values(parsed, Options), given_values(parsed, ppo.Config)
    options = Options(**{"preset": "demem", **given})
    require("preset" not in given, options, "preset", "is a method here: --methods deep,demem,paper")
    require(not options.lora_rank, options, "lora_rank", "is a method here: --methods demem-lora")
    is_lab = options.model == "lab" and options.data == "lab"
    for name in comparison.names:
        require(is_lab or METHODS[name].kind != "retraining", options, "model", f"has no twin: leave out {name}")
        is_copied = options.eval_dtype != "same"
        require(not (is_copied and METHODS[name].kind == "decoding"), options, "eval_dtype", f"does not go with {name}")
    for preset in PRESETS:
        if preset in comparison.names:
            ppo.Config.from_dict(settings_of(preset, changes))
    attacker = read_attacker(parsed)
    run = load_run(options, {**PRESETS["demem"], **changes}, Processes())
    sizes = sizes_of(comparison, run.study)
    if "relearning" in attacker.names:
        for size in sizes:
            count_taught(size, attacker.settings.relearning_share)
    attacker = attacker.of(run.config)
    open_folder(run, changes, shared_settings(comparison, attacker))
    for size in sizes:
        compare_at(size, comparison, run, changes, attacker, train, text_to_keep)
    write_pages(run.out, compared_points(run.out), order=list(METHODS))
    say(f"page: {run.out / 'compare.html'}   tables: {run.out / 'compare.md'}")


def read_attacker(parsed: argparse.Namespace) -> Attacker:
    """The attacker that ``--attacks`` asks for; without it, one that attacks nothing.

    ValueError for what cannot work.
    """
    given = given_values(parsed, AttackOptions)
    options = AttackOptions(**given)
    if "attacks" in given:
        return options.attacker()
    require(not given, options, next(iter(given), ""), "goes with --attacks")
    return Attacker()


def shared_settings(comparison: Comparison, attacker: Attacker) -> dict[str, Any]:
    """The settings of the comparison itself that all points of a folder share."""
    attacks = {"attacks": attacker.names, "attack_groups": attacker.groups, **attacker.settings.to_dict()}
    own = {name: getattr(comparison, name) for name in ("baseline_rate", "most_holdout")}
    return (attacks if attacker.names else {}) | {name: value for name, value in own.items() if value is not None}


def compare_at(
    size: int,
    comparison: Comparison,
    run: Run,
    changes: dict[str, Any],
    attacker: Attacker,
    train: Train,
    text_to_keep: Keep,
) -> None:
    """Measure the points of one number of forget records."""
    run = replace(run, study=resized(run.study, size, most_holdout=comparison.most_holdout))
    original = copy.deepcopy(run.loaded.model)
    first = Point("original", 0.0, run.config.seed, size)
    keep = text_by_seed(run, text_to_keep)
    retrained = RetrainedModels(Path(comparison.twins or run.out / "twins"), Recipe(), say, run.options.device)

    def at(point: Point) -> None:
        if find_point(run.out, point.key) is not None:
            return
        before = None if point == first else summary_of(run.out, first.key)
        unlearn = Unlearn(run, changes, before or {}, train)
        floor, work = chance_floor(run, before or {}), run.out / "work" / point.key
        inputs = Inputs(
            run, floor, keep, retrained, unlearn, work, comparison.baseline_rate, secrets.bounds(before or {})
        )
        say(f"{point.key} …")
        method = METHODS[point.name]
        unlearned = method.apply(inputs, point.value, point.seed)
        started = time.perf_counter()
        measured = measure(run, unlearned, original, before)
        if attacker.names and method.kind != "decoding":  # whoever holds the weights decodes as he likes
            passages = attacker.chosen(run.study.passages)
            measured["attacks"] = attacker.attack(
                unlearned.model, run.loaded.tokenizer, passages, label=point.key, benign=run.study.retain
            )
        measured["seconds"] = time.perf_counter() - started
        store_point(run.out, point.key, describe(point, method, unlearned, run, measured))
        shutil.rmtree(inputs.work, ignore_errors=True)

    for point in [first, *(p for p in plan(comparison, run.config.seed, size) if p != first)]:
        at(point)


def summary_of(folder: Path, key: str) -> dict[str, float]:
    """The numbers of a point. ValueError where it is not there, or not as it must be."""
    point = read_point(folder, key)
    check_point(point, f"{place_of(folder, key)} is damaged")
    return dict(point["summary"])


def text_by_seed(run: Run, text_to_keep: Keep) -> Callable[[int], list[list[int]]]:
    """The text to keep by seed, as DeMem draws it with that seed. All methods share one draw."""
    return cache(lambda seed: text_to_keep(replace(run, config=replace(run.config, seed=seed))))


def plan(comparison: Comparison, seed: int, size: int) -> Iterator[Point]:
    """The points in the order of the work: each method with its default and one seed first, then the rest."""
    points = []
    for place, name in enumerate(comparison.names):
        method = METHODS[name]
        values = method.values if comparison.knobs == "all" else (method.default,)
        for value in values:
            for k in range(comparison.num_seeds(method)):
                points.append((k, value != method.default, place, Point(name, value, seed + k, size)))
    return (point for *_, point in sorted(points, key=lambda row: row[:3]))


def open_folder(run: Run, changes: dict[str, Any], shared: Mapping[str, Any]) -> None:
    """Create the folder, or check that it was begun with the same settings, which all points share."""
    mine = {name: value for name, value in asdict(run.options).items() if name not in ("out", "resume", "device")}
    settings = json.loads(json.dumps({"options": mine, "config": changes, "comparison": shared}))
    path = run.out / "compare.json"
    check_folder(run.out, is_new=not path.is_file())
    if path.is_file():
        known = begun_with(path)
        plain = {name: value for name, value in asdict(Options()).items() if name in mine}  # of options that are new
        known["options"] = json.loads(json.dumps(plain)) | known["options"]
        if known != settings:
            both = [(part, n) for part in PARTS for n in {**known[part], **settings[part]}]
            wrong = visible(", ".join(n for part, n in both if known[part].get(n) != settings[part].get(n)))[:500]
            raise ValueError(f"--out {run.out} was begun with other settings ({wrong}): name another folder")
    (run.out / "points").mkdir(exist_ok=True)
    write_json(path, settings)


def begun_with(path: Path) -> dict[str, dict[str, Any]]:
    """The settings in compare.json, by part. ValueError names the file and what is no object in it."""
    known = read_json(path)
    if not isinstance(known, dict):
        raise ValueError(f"{visible(str(path))} is damaged: it holds a {type(known).__name__}, not an object")
    parts = {"options": None, "config": None, "comparison": {}, **known}  # older folders have no third part
    for part in PARTS:
        if not isinstance(parts[part], dict):
            raise ValueError(f"{visible(str(path))} is damaged: {part} is {parts[part]!r:.60}, not an object")
    return {part: dict(parts[part]) for part in PARTS}


def sizes_of(comparison: Comparison, study: Study) -> list[int]:
    """The numbers of forget records. ValueError for more than there are memorised ones to forget."""
    most = len(study.group("forget")) + len(study.group("forget_holdout"))
    sizes = [int(size) for size in comparison.sizes.split(",")] if comparison.sizes else [len(study.group("forget"))]
    for size in sizes:
        if size > most:
            raise ValueError(f"--sizes {size} is more than the {most} passages in the groups forget and forget_holdout")
    return sizes


def resized(study: Study, size: int, *, most_holdout: int | None = None) -> Study:
    """The study with the first ``size`` of the forget and forget-holdout passages to be forgotten, the others held out.

    ``most_holdout``: only so many of the passages that are held out stay, the first ones; None: all.
    """
    pool = iter(range(len(study.passages)))
    passages = []
    for p in study.passages:
        if p.group in ("forget", "forget_holdout"):
            p = replace(p, group="forget" if next(pool) < size else "forget_holdout")
        passages.append(p)
    held_out = [p for p in passages if p.group == "forget_holdout"]
    left_out = {p.id for p in held_out[len(held_out) if most_holdout is None else most_holdout :]}
    return replace(study, passages=[p for p in passages if p.id not in left_out])


def describe(
    point: Point, method: Method, unlearned: UnlearnedModel, run: Run, measured: dict[str, Any]
) -> dict[str, Any]:
    """The content of a point's file. ``seconds`` are those of evaluation and attacks; ``cost`` holds the method's."""
    return {
        "method": point.name, "kind": method.kind, "knob": method.knob, "value": point.value,
        "is_default": point.value == method.default, "seed": point.seed, "size": point.size,
        "cost": unlearned.cost.to_dict(), "notes": unlearned.notes, **measured, "meta": run.meta(),
    }  # fmt: skip
