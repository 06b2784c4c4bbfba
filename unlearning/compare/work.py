"""The points of a comparison, one after another: a method is applied, its model is measured, a file is written.

With ``--knobs tuned`` the values of a knob are tried first, on passages that the points do not report.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from data.held_back import SHOWN
from data.study import Study
from eval import secrets
from eval.compared import check_point
from eval.points import find_point, place_of, read_point, store_point
from models.lab.recipe import Recipe
from unlearning.attack import Attacker
from unlearning.compare.bench import Inputs, UnlearnedModel
from unlearning.compare.measure import measure
from unlearning.compare.methods import METHODS
from unlearning.compare.retrained import RetrainedModels
from unlearning.compare.settings import Comparison, Point, plan
from unlearning.compare.sources import SOURCES
from unlearning.compare.studies import parted, resized
from unlearning.compare.tuning import Tuned, tuned
from unlearning.compare.unlearn import Train, Unlearn
from unlearning.floor import chance_floor
from unlearning.recipe import standing_in
from unlearning.run import Run, say

Keep = Callable[[Run], list[list[int]]]


@dataclass(frozen=True)
class Bench:
    """What all points of a comparison share. ``train`` and ``text_to_keep`` are DeMem's own.

    ``encoder``: of the paper's reward.
    """

    comparison: Comparison
    run: Run
    changes: dict[str, Any]
    attacker: Attacker
    train: Train
    text_to_keep: Keep
    encoder: str | None = None

    def studies(self, size: int) -> tuple[Study, Study]:
        """The passages that methods are given where ``size`` are to be forgotten, and those that are reported."""
        study = resized(self.run.study, size, most_holdout=self.comparison.most_holdout)
        return study, parted(study, seed=self.run.config.seed)[1] if self.comparison.knobs == "tuned" else study

    def compare(self, size: int) -> None:
        """Measure the points of one number of forget records."""
        given, reported = self.studies(size)
        run = replace(self.run, study=given)
        retrained = RetrainedModels(Path(self.comparison.twins or run.out / "twins"), Recipe(), say, run.options.device)
        keep = text_by_seed(run, self.text_to_keep)
        work = Work(self, run, reported, run.out, copy.deepcopy(run.loaded.model), keep, retrained, size)
        if self.comparison.knobs != "tuned":
            work.measure_all(plan(self.comparison, run.config.seed, size), {})
            return
        part = parted(given, seed=run.config.seed)[0]
        trial = replace(work, bench=replace(self, attacker=Attacker()), reported=part, folder=run.out / "tuning")
        found = trial.tune()
        best = {name: choice.value for name, choice in found.items()}
        shared = {"seed": run.config.seed, "passages": trial.counts()}
        notes = {name: choice.to_dict() | shared for name, choice in found.items()}
        work.measure_all(plan(self.comparison, run.config.seed, size, best), notes)


@dataclass(frozen=True)
class Work:
    """The points of one number of forget records, in one folder.

    run        the original model, and the passages that methods are given
    reported   the passages that are measured
    original   a copy of the model that stays as it is
    keep       seed → the text to keep that DeMem draws with it
    """

    bench: Bench
    run: Run
    reported: Study
    folder: Path
    original: nn.Module
    keep: Callable[[int], list[list[int]]]
    retrained: RetrainedModels
    size: int

    @property
    def first(self) -> Point:
        """The point of the original, which all others are compared with."""
        return Point("original", 0.0, self.run.config.seed, self.size)

    def counts(self) -> dict[str, int]:
        """The number of measured passages of each group."""
        groups = [p.group for p in self.reported.passages]
        return {name: groups.count(name) for name in dict.fromkeys(groups)}

    def measure_all(self, points: list[Point], notes: dict[str, dict[str, Any]]) -> None:
        """Measure the points that are missing, the original first. ``notes``: how a method's value was tuned."""
        for point in [self.first, *(p for p in points if p != self.first)]:
            self.measure(point, notes.get(point.name))

    def tune(self) -> dict[str, Tuned]:
        """The value of every method that has a knob: each is trained and measured once here."""
        seed, comparison, found = self.run.config.seed, self.bench.comparison, {}
        self.measure(self.first)
        for name in comparison.names:
            if not METHODS[name].knob:
                continue
            points = {value: Point(name, value, seed, self.size) for value in comparison.values(name)}
            for point in points.values():
                self.measure(point)
            summaries = {value: summary_of(self.folder, point.key) for value, point in points.items()}
            found[name] = tuned(summaries, summary_of(self.folder, self.first.key))
            say(f"{name}: {METHODS[name].knob} {found[name].value:g}, the best of {len(points)} on other passages")
        return found

    def measure(self, point: Point, tuning: dict[str, Any] | None = None) -> None:
        """Apply a method, measure its model and write the point, unless it is there."""
        if find_point(self.folder, point.key) is not None:
            return
        before = None if point == self.first else summary_of(self.folder, self.first.key)
        say(f"{point.key} …")
        method, run, work = METHODS[point.name], self.run, self.folder / "work" / point.key
        unlearned = method.apply(self._inputs(before or {}, work), point.value, point.seed)
        started = time.perf_counter()
        measured = measure(replace(run, study=self.reported), unlearned, self.original, before)
        attacker = self.bench.attacker
        if attacker.names and method.kind != "decoding":  # whoever holds the weights decodes as he likes
            passages = attacker.chosen(self.reported.passages)
            measured["attacks"] = attacker.attack(
                unlearned.model, run.loaded.tokenizer, passages, label=point.key, benign=run.study.retain
            )
        measured["seconds"] = time.perf_counter() - started
        store_point(self.folder, point.key, self._described(point, unlearned, measured, tuning))
        shutil.rmtree(work, ignore_errors=True)

    def _inputs(self, before: dict[str, float], work: Path) -> Inputs:
        """What a method is given. ``before``: the summary of the original."""
        bench, run = self.bench, self.run
        terms, rate = bench.comparison.terms, bench.comparison.baseline_rate
        unlearn = Unlearn(run, bench.changes, before, bench.train, terms, self.keep, bench.encoder)
        floor, most = chance_floor(run, before), secrets.bounds(before)
        return Inputs(run, floor, self.keep, self.retrained, unlearn, work, rate, most, terms)

    def _standing(self, seed: int) -> dict[str, float]:
        """How much of the records to keep stands in the text to keep of a seed, by group."""
        return standing_in(self.run.study, self.keep(seed))

    def _kept(self, seed: int) -> dict[str, int]:
        """How much text to keep a seed has, and how many texts the model wrote itself, or are records to keep."""
        kept, study = self.keep(seed), self.run.study
        given, shown = {tuple(text) for text in study.retain}, {p.ids for p in study.group(SHOWN)}
        records = sum(tuple(text) in shown for text in kept)
        return {
            "texts": len(kept),
            "tokens": sum(map(len, kept)),
            "own": sum(tuple(text) not in given for text in kept) - records,
            "records": records,
        }

    def _described(
        self, point: Point, unlearned: UnlearnedModel, measured: dict[str, Any], tuning: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The content of a point's file. ``seconds``: of evaluation and attacks. ``cost``: of the method."""
        method, cost = METHODS[point.name], unlearned.cost.to_dict()
        usual = method.default if tuning is None else tuning["value"]
        values = self.bench.comparison.values(point.name)
        standing = {} if unlearned.budget is None or not unlearned.budget.keep_tokens else self._standing(point.seed)
        budget = {} if unlearned.budget is None else unlearned.budget.to_dict() | {"flops": cost["flops"]}
        return {
            "method": point.name, "source": SOURCES[point.name],
            "kind": method.kind, "knob": method.knob, "value": point.value,
            "is_default": point.value == usual or len(values) == 1, "seed": point.seed, "size": point.size,
            "cost": cost, "notes": unlearned.notes, **measured, **({"budget": budget} if budget else {}),
            **({"text_to_keep": standing} if standing else {}),
            **({"kept": self._kept(point.seed)} if budget.get("keep_tokens") else {}),
            **({"tuning": tuning} if tuning else {}), "meta": self.run.meta(),
        }  # fmt: skip


def summary_of(folder: Path, key: str) -> dict[str, float]:
    """The numbers of a point. ValueError where it is not there, or not as it must be."""
    point = read_point(folder, key)
    check_point(point, f"{place_of(folder, key)} is damaged")
    return dict(point["summary"])


def text_by_seed(run: Run, text_to_keep: Keep) -> Callable[[int], list[list[int]]]:
    """The text to keep by seed, as DeMem draws it with that seed. All methods share one draw."""
    return cache(lambda seed: text_to_keep(replace(run, config=replace(run.config, seed=seed))))
