"""A DeMem run: its parts, and how the command line or its folder puts them together.

This module checks that the model, the data and the config fit together. What cannot work is an error here, before any
work is done. The method itself is demem.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median_high
from typing import Any

from torch import nn

import ppo
from data.held_back import hold_back
from data.study import Study, check_fits, load_study
from eval.provenance import provenance
from eval.results import check_folder, check_same, check_untrained, read_settings, write_json
from models.load import LoadedModel, load
from ppo.distributed import Processes
from ppo.io.options import given_values
from ppo.io.visible import visible
from ppo.lm.backbone import Backbone, context_length, vocabulary_size
from ppo.lm.device import resolve_device, resolve_dtype
from rewards.bertscore import BertScore
from unlearning.options import MEMORISE, OF_ATTACK, PRESETS, Options

LAST_RATE = 0.1  # of the learning rate, with preset deep, at the last step
DEEP_RATE, DEEP_WIDTH = 6e-4, 176  # the learning rate of preset deep, tuned on the lab, and the lab's width


@dataclass(frozen=True)
class Run:
    """One run: its options, its config, the model as it is now, the data, and the reward's encoder, if it has one.

    ``processes``: those that train together, as this one sees them.
    """

    options: Options
    config: ppo.Config
    loaded: LoadedModel
    study: Study
    encoder: BertScore | None = None
    processes: Processes = Processes()

    @property
    def out(self) -> Path:
        return Path(self.options.out)

    def meta(self) -> dict[str, Any]:
        """The provenance of this run's numbers."""
        of_run = {"model": self.options.model, "data": self.options.data, "preset": self.options.preset}
        device = next(self.loaded.model.parameters()).device
        of_run["dtype"] = self.options.dtype
        several = {"processes": self.processes.count} if self.processes.count > 1 else {}
        return of_run | {"seed": self.config.seed} | provenance(device) | several


def prepare(command: str, parsed: argparse.Namespace, processes: Processes = Processes()) -> Run:
    """Load what the command works on. ValueError, before any work, for what cannot work."""
    options, changes = processes.first(lambda: read_options(command, parsed))
    with processes.together():
        run = load_run(options, changes, processes)
        if command in ("run", "train"):
            processes.check(run.config)
        if processes.is_first:
            write_json(run.out / "config.json", {"options": asdict(options), "config": run.config.to_dict()})
    return run


def load_run(options: Options, changes: Mapping[str, Any], processes: Processes) -> Run:
    """Load the model and the data of a run, and complete its config. ValueError where they do not fit together."""
    loaded = load_model(options, options.model)
    study = load_study(
        options.data,
        loaded.tokenizer,
        vocabulary_size(loaded.model),
        split=options.data_split,
        retain=options.retain,
        num_forget=options.num_forget,
        num_holdout=options.num_holdout,
        num_never=options.num_never,
        secrets=options.secrets,
    )
    study = replace(study, passages=hold_back(study.passages))
    if study.num_left_out:
        say(f"{study.num_left_out} passages of {options.data} are not used: see --num-forget and --num-holdout")
    if not study.group("forget"):
        raise ValueError(f"--data {options.data} has no passage in the group 'forget': there is nothing to unlearn")
    usual = median_high(len(p.suffix) for p in study.group("forget"))
    config = ppo.Config.from_dict({"response_length": usual, **changes})
    if options.preset in ("demem", "grpo") and "min_response_length" not in changes:
        # Otherwise the policy learns to end early: a short text has little right and nothing wrong.
        config = config.replace(min_response_length=config.response_length)
    if options.is_deep:
        config = config.replace(**deep_schedule(options, loaded.model, changes))
    if options.is_deep and config.sharding != "none" and not config.gather_for_rollouts:
        raise ValueError("--preset deep asks the whole model at its states: leave --gather-for-rollouts on")
    if options.lora_rank and config.sharding != "none":
        raise ValueError(f"--lora-rank {options.lora_rank} merges the adapter at the end: leave --sharding at none")
    check_fits(study, context_length(loaded.model), config.response_length)
    device = next(loaded.model.parameters()).device
    encoder = BertScore.load(options.encoder, device=device) if options.encoder else None
    return Run(options, config, loaded, study, encoder, processes)


def deep_schedule(options: Options, model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """The learning rate of preset deep, unless it was ``given``, and the steps of its fall, unless they were changed.

    A wide model takes smaller steps: Adam moves every weight alike, so that the change of a layer's output grows with
    the number of its inputs (Yang et al., Tensor Programs V). The rate falls as one over the width, from the lab's.
    """
    rate = DEEP_RATE * min(1.0, DEEP_WIDTH / Backbone(model).hidden_size)
    own: dict[str, Any] = {} if "learning_rate" in given else {"learning_rate": rate}
    if given.get("total_steps") == PRESETS["deep"]["total_steps"]:
        own["total_steps"] = round(options.most_steps / (1 - LAST_RATE))
    return own


def load_model(options: Options, spec: str | Path) -> LoadedModel:
    """A model on the device of the run, in its dtype. ValueError, before anything is loaded, for a missing device."""
    place = resolve_device(options.device)
    return load(spec, dtype=resolve_dtype(options.dtype)).on(place)


def read_options(command: str, parsed: argparse.Namespace) -> tuple[Options, dict[str, Any]]:
    """The options, and the changes of ppo.Config's defaults.

    A setting that was not given comes from the run's folder, then from the preset: a run goes on as it began.
    """
    given, given_config = given_values(parsed, Options), given_values(parsed, ppo.Config)
    out, is_resumed = Path(given.get("out", Options.out)), given.get("resume", False)
    is_new = command in ("run", "attack", "memorise") and not is_resumed
    saved = {} if is_new or not (out / "config.json").is_file() else read_settings(out)
    if not saved and (command == "evaluate" or is_resumed):
        raise ValueError(f"--out {out} holds no run to go on with: there is no config.json in it")
    if command == "train" and not is_resumed:
        check_untrained(out)  # an attack in the folder fixes data and evaluation, not the training settings
        check_same(saved, {name: value for name, value in given.items() if name in OF_ATTACK}, {})
    else:
        check_same(saved, given, given_config)
    options, changes = join_settings(saved, given, given_config, MEMORISE if command == "memorise" else None)
    check_folder(out, is_new=is_new or not saved)
    return options, changes


def join_settings(
    saved: Mapping[str, Any],
    given: Mapping[str, Any],
    given_config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Options, dict[str, Any]]:
    """The options and config changes: what was given, else the folder's config.json (``saved``), else ``defaults``.

    None: those of the preset.
    """
    options = Options(**{**saved.get("options", {}), "resume": False, "live": False, **given})
    is_same_preset = options.preset == saved.get("options", {}).get("preset")
    changes = {**(saved["config"] if is_same_preset else defaults or PRESETS[options.preset]), **given_config}
    ppo.Config.from_dict(changes)  # a wrong setting is found before a model is loaded
    return options, changes


def say(text: str) -> None:
    """One message to the reader. What in it came from outside can neither act on the terminal nor hide in it."""
    print(visible(text, lines=True), flush=True)


def say_if(text: str) -> None:
    """The same for a message that may be empty."""
    if text:
        say(text)
