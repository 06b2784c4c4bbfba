"""One point of the lab study: train a variant, evaluate it as every run is evaluated, and return the numbers.

The training is demem.py's own, with another reward, reference or starting model. The distillation is that of the
comparison. A point holds numbers alone, no text of a passage.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import demem
import ppo
from benchmarks.study.graded import graded_model, with_repeats
from benchmarks.study.points import (
    ORIGINAL,
    Point,
    Settings,
    asked,
    changes_of,
    distil_steps_of,
    options_of,
)  # fmt: skip
from benchmarks.study.variants import REFERENCES, REWARDS, VARIANTS, Setting, Variant
from data.study import Study
from eval import secrets
from eval.evaluate import Evaluation, evaluate
from eval.settings import Settings as EvaluationSettings
from models.lab.recipe import Recipe
from ppo.distributed import Processes
from ppo.log import read_jsonl
from unlearning.compare.bench import Inputs
from unlearning.compare.methods import METHODS
from unlearning.compare.retrained import RetrainedModels
from unlearning.compare.studies import resized
from unlearning.compare.unlearn import Unlearn
from unlearning.floor import chance_floor
from unlearning.options import PRESETS, Options
from unlearning.recipe import rows_to_forget, text_to_keep
from unlearning.run import Run, load_model, load_run, say

QUANTITIES = ("exact", "exact_sampled", "discoverable", "approximate", "bleu", "true_token_p", "matched_prefix")
QUICK_RECIPE = Recipe(epochs=1, repeats_per_epoch=4)
QUICK_DOCUMENTS = 20


@dataclass(frozen=True)
class Workshop:
    """``work``: a folder for the files that a point writes while it is measured, and for the graded lab."""

    settings: Settings
    work: Path

    @property
    def recipe(self) -> Recipe:
        """Of the graded lab."""
        return Recipe() if self.settings.share == 1 else QUICK_RECIPE

    def model(self, point: Point) -> str:
        """The value for ``demem.py --model``. The graded lab is trained first where it is not there."""
        if point.lab == "lab":
            return "lab"
        documents = None if self.settings.share == 1 else QUICK_DOCUMENTS
        folder = self.work / ("graded" if self.settings.share == 1 else "graded-quick")
        return str(graded_model(folder, self.recipe, say, most_documents=documents))

    def prepare(self, point: Point) -> Run:
        """The run of a point: model, passages, config."""
        options: dict[str, Any] = {"num_samples": self.settings.num_samples}
        changes: dict[str, Any] = {**PRESETS["demem"], "seed": point.seed}
        if point.variant != ORIGINAL:
            variant = VARIANTS[point.variant]
            options = options_of(variant, self.settings)
            changes = changes_of(variant, self.settings, point.seed)
        out = str(self.work / point.key)
        asked = Options(**{"model": self.model(point), "out": out, "preset": "demem", **options})
        run = load_run(asked, changes, Processes())
        study = shrunk(run.study, self.settings.share) if self.settings.share > 1 else run.study
        study = resized(study, point.size // self.settings.share)
        if point.lab == "graded":
            study = replace(study, passages=with_repeats(study.passages, self.recipe))
        return replace(run, study=study)


def shrunk(study: Study, share: int) -> Study:
    """The first ``share``-th of every group, and of the held-out text."""
    passages = []
    for name in dict.fromkeys(p.group for p in study.passages):
        members = study.group(name)
        passages += members[: len(members) // share]
    return replace(study, passages=passages, holdout=study.holdout[: max(1, len(study.holdout) // share)])


def make_point(point: Point, workshop: Workshop, before: Mapping[str, float]) -> dict[str, Any]:
    """Train and measure, and return what is stored of the point. ``before``: the original's summary; {} for itself.

    "error" says why a training broke off, which is a result; such a point has no summary.
    """
    run = workshop.prepare(point)
    shutil.rmtree(run.out, ignore_errors=True)
    run.out.mkdir(parents=True)
    original = copy.deepcopy(run.loaded.model).requires_grad_(False).eval()
    seconds: dict[str, float] = {}
    steps: dict[str, Any] = {}
    error, found = None, None
    started = time.perf_counter()
    try:
        if point.variant != ORIGINAL:
            run, steps = trained(point, workshop, run, original, before)
    except (FloatingPointError, ppo.CheckError) as broken:
        error = " ".join(str(broken).split())
    seconds["training"] = time.perf_counter() - started
    if error is None:
        started = time.perf_counter()
        found = measure(run, original)
        seconds["evaluation"] = time.perf_counter() - started
    shutil.rmtree(run.out, ignore_errors=True)
    return {
        "key": point.key,
        "asked": asked(point, workshop.settings),
        "config": run.config.to_dict() if point.variant != ORIGINAL else None,
        "steps": steps,
        "error": error,
        "seconds": seconds,
        "summary": found.summary if found else {},
        "parts": {name: parted(found.records, name) for name in ("kind", "repeats")} if found else {},
        "meta": run.meta() | {"model": point.lab},
    }


def trained(
    point: Point, workshop: Workshop, run: Run, original: nn.Module, before: Mapping[str, float]
) -> tuple[Run, dict[str, Any]]:
    """The run with the model that the variant trained, and the number of steps of each kind."""
    variant = VARIANTS[point.variant]
    kept = text_to_keep(run)  # the original's own text, also where distillation comes first
    known = Evaluation(dict(before), {}, {}, {}, {})
    steps: dict[str, Any] = {}
    if most := distil_steps_of(variant, workshop.settings):
        looks = Options.check_every if variant.is_trained else run.options.check_every  # PPO's may be off
        run, steps["distillation"] = distilled(run, kept, known, most, looks)
    if not variant.is_trained:
        return run, steps
    demem.train(run, known, make=partial(make_trainer, variant=variant, original=original, kept=kept))
    rows = read_jsonl(run.out / "metrics.jsonl")
    steps |= {"ppo": len(rows), "is_stopped": len(rows) < run.options.most_steps}
    loaded = load_model(run.options, run.out / "model")
    return replace(run, loaded=replace(run.loaded, model=loaded.model)), steps


def distilled(run: Run, kept: Sequence[Sequence[int]], before: Evaluation, most: int, looks: int) -> tuple[Run, int]:
    """Distil for at most ``most`` steps; check every ``looks`` steps whether to stop."""
    short = replace(run, options=replace(run.options, steps=most, check_every=looks))
    texts = [list(text) for text in kept]
    unlearn = Unlearn(short, {}, before.summary, demem.train)
    retrained = RetrainedModels(run.out / "twins", Recipe(), say)
    floor, most = chance_floor(short, before.summary), secrets.bounds(before.summary)
    inputs = Inputs(short, floor, lambda seed: texts, retrained, unlearn, run.out, secrets=most)
    method = METHODS["distil"]
    unlearned = method.apply(inputs, method.default, run.config.seed)
    model = unlearned.model
    assert isinstance(model, type(run.loaded.model))
    return replace(run, loaded=replace(run.loaded, model=model)), int(unlearned.notes["steps"])


def make_trainer(
    run: Run, floor: float, *, variant: Variant, original: nn.Module, kept: Sequence[Sequence[int]]
) -> ppo.Trainer:
    """demem.py's trainer with the variant's reward and reference.

    A KL loss on text to keep holds the model to its present weights; after a distillation these are the distilled ones.
    """
    setting = Setting(run, floor, original)
    reward = REWARDS[variant.reward](setting)
    reference = REFERENCES[variant.reference](setting) if variant.reference else None
    say(f"reward: {reward.signature}")
    return ppo.Trainer(
        run.loaded.model,
        rows_to_forget(run),
        reward,
        run.config,
        tokenizer=run.loaded.tokenizer,
        reference=reference,
        retain=kept,
        out=run.out,
    )


def measure(run: Run, original: nn.Module) -> Evaluation:
    """The evaluation that every run gets. Sampling takes the same random numbers for all seeds of the training."""
    study, settings = run.study, EvaluationSettings(num_samples=run.options.num_samples, seed=0)
    return evaluate(
        run.loaded.model, run.loaded.tokenizer, study.passages, study.holdout, original=original, settings=settings
    )


def parted(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """Means by group and by ``name`` ("kind" or "repeats" of a passage), such as "forget/letter" to its numbers."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        parts.setdefault(f"{record['group']}/{record[name]}", []).append(record)
    found = {}
    for part, rows in parts.items():
        numbers = {q: [row[q] for row in rows if row.get(q) is not None] for q in QUANTITIES}
        means = {q: sum(values) / len(values) for q, values in numbers.items() if values}
        found[part] = {"passages": len(rows), **means}
    return found
