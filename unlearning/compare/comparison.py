"""``python demem.py compare``: DeMem and what it has to be compared with, on the same passages, by the same evaluation.

    python demem.py compare --methods demem,ul,npo,distil --seeds 3 --out runs/compare

Every point (method, value of its knob, seed, number of forget records) is one JSON file under ``points/``, written
whole or not at all. The same command goes on where it was stopped. It may add methods, seeds, knobs or sizes; other
settings than those that the folder was begun with are an error.

    compare.json   the settings that all points share      points/  a point a file: summary with intervals, signatures
                                                           and settings, cost, budget, where it comes from
    compare.html, compare.md, compare.tex   the tables     twins/   the lab's models without the records
    tuning/    with --knobs tuned: points on passages that are not reported, by which values were chosen

Every evaluation samples with the same random numbers; seeds differ in training alone. This module knows the folder and
what goes together. unlearning/compare/work.py makes the points, unlearning/compare/methods.py knows the methods.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ppo
from eval.attacks.relearning import count_taught
from eval.compared import compared_points
from eval.report.comparison.page import write_pages
from eval.results import check_folder, write_json
from ppo.distributed import Processes
from ppo.io.fields import require
from ppo.io.files import read_json
from ppo.io.options import given_values
from ppo.io.visible import visible
from unlearning.attack import Attacker, AttackOptions
from unlearning.compare.methods import METHODS
from unlearning.compare.settings import Comparison
from unlearning.compare.studies import sizes_of
from unlearning.compare.unlearn import PAPER, Train, Unlearn
from unlearning.compare.work import Bench, Keep
from unlearning.options import PRESETS, Options
from unlearning.run import Run, load_run, say

PARTS = ("options", "config", "comparison")  # of compare.json


def compare(parsed: argparse.Namespace, *, train: Train, text_to_keep: Keep) -> None:
    """Measure the points that are missing, one after another, then write the page.

    ``train`` and ``text_to_keep`` are DeMem's own.
    """
    comparison = Comparison(**given_values(parsed, Comparison))
    options, encoder = read_options(parsed, comparison)
    changes = given_values(parsed, ppo.Config)
    attacker = read_attacker(parsed)
    run = load_run(options, {**PRESETS["demem"], **changes}, Processes())
    sizes = sizes_of(comparison, run.study)
    check_settings(comparison, run, changes, train)
    bench = Bench(comparison, run, changes, attacker.of(run.config), train, text_to_keep, encoder)
    studies = [bench.studies(size) for size in sizes]
    if "relearning" in attacker.names:
        for _, measured in studies:
            count_taught(len(measured.group("forget")), attacker.settings.relearning_share)
    shared = shared_settings(comparison, bench.attacker) | ({} if encoder is None else {"encoder": encoder})
    open_folder(run, changes, shared)
    for size in sizes:
        bench.compare(size)
    write_pages(run.out, compared_points(run.out), order=list(METHODS))
    say(f"page: {run.out / 'compare.html'}   tables: {run.out / 'compare.md'}")


def read_options(parsed: argparse.Namespace, comparison: Comparison) -> tuple[Options, str | None]:
    """The options that all methods share, and the encoder of the paper's reward.

    ValueError for what is a method here, or goes with none of them.
    """
    given = given_values(parsed, Options)
    encoder = given.pop("encoder", None)
    options = Options(**{"preset": "demem", "siblings": 0, **given})  # no rival forgets siblings
    require("preset" not in given, options, "preset", "is a method here: --methods deep,demem,paper")
    require(options.windows is None, options, "windows", "is of a run: --forget-on says it for all methods")
    is_paper = any(METHODS[name].preset in PAPER for name in comparison.names)
    require(encoder is None or is_paper, comparison, "methods", "names no method that takes --encoder: add paper")
    require(not options.lora_rank, options, "lora_rank", "is a method here: --methods demem-lora")
    is_lab, is_copied = options.model == "lab" and options.data == "lab", options.eval_dtype != "same"
    for name in comparison.names:
        require(is_lab or METHODS[name].kind != "retraining", options, "model", f"has no twin: leave out {name}")
        require(not (is_copied and METHODS[name].kind == "decoding"), options, "eval_dtype", f"does not go with {name}")
    if comparison.updates is None:
        return options, encoder
    require(options.steps is None, options, "steps", f"cannot go with --updates {comparison.updates}, which bounds all")
    return options if "early_end" in given else replace(options, early_end="off"), encoder


def check_settings(comparison: Comparison, run: Run, changes: dict[str, Any], train: Train) -> None:
    """ValueError, before any work, where DeMem cannot be trained on the comparison's terms."""
    presets = {name: METHODS[name].preset for name in comparison.names if METHODS[name].preset}
    unlearn = Unlearn(run, changes, {}, train, comparison.terms)
    for name, preset in presets.items():
        for value in comparison.values(name):
            ppo.Config.from_dict(unlearn.asked(preset, METHODS[name].knob, value)[1])


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
    return (attacks if attacker.names else {}) | comparison.shared()


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
