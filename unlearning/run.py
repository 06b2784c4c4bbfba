"""What a DeMem run is made of, and how it is put together from the command line or from its folder.

:class:`Options` and the presets, the model, the data and the config held against each other: whatever cannot work is
refused here, before any work is done. The method itself is demem.py.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_high
from typing import Any, Literal

import torch
from torch import nn

import ppo
from data.study import Study, check_fits, load_study
from eval.provenance import provenance
from eval.results import check_folder, check_same, check_untrained, read_settings, write_json
from eval.settings import Settings
from models.load import LoadedModel, load
from ppo.config import check_types, require
from ppo.distributed import Processes
from ppo.io.options import given_values
from ppo.lm.backbone import context_length, vocabulary_size
from rewards.bertscore import BertScore


@dataclass(frozen=True)
class Options:
    """What to work on and when to stop; everything about PPO itself is in :class:`ppo.Config`."""

    model: str = "lab"  # lab, lab:deduplicated, lab:retain-only, a hub id, a folder, or a .gguf file
    data: str = "lab"  # lab, a folder of challenge .npy files, a .csv or a .jsonl file
    data_split: str | None = None  # which of a folder's .npy files (none: the only one, or val)
    retain: tuple[str, ...] = ()  # text or .jsonl files to keep; none: Python's own documentation
    num_forget: int | None = None  # passages to unlearn, where the data names no groups; none: 32
    num_holdout: int | None = None  # memorised passages that unlearning never sees, sharing no 20-gram; none: 32
    num_never: int | None = None  # passages that the model was never trained on, for the chance floor; none: 0
    out: str = "runs/demem"  # folder of the run
    preset: str = "default"  # default, paper, or paper-as-run: the paper's notebook with its flaws
    encoder: str | None = None  # encoder of the paper's BERTScore, a hub id or folder; none: it takes BLEU
    fluency_weight: float = 0.0  # reward lost for a nat per token outside the fluency band; 0: no band
    fluency_low: float = 0.5  # nats per token under the original model; below lie loops and memorised text
    fluency_high: float = 6.0  # nats per token under the original model; above lies gibberish
    lora_rank: int = 0  # of an adapter that is trained in the weights' place and merged at the end; 0: the weights
    windows: int | None = None  # places of a passage to train on, half a suffix apart; none: 2 (paper: 1, the suffix)
    steps: int | None = None  # PPO steps at most; none: 60 (paper-as-run: 4)
    check_every: int = 2  # steps between two looks at the forget set
    target_exact: float = 0.05  # share of the forget set that may still be extractable at the end
    bleu_floor: float | None = None  # BLEU that a model reaches by chance; none: measured on never-trained passages
    memorise_epochs: int = 12  # epochs of memorise at most
    memorise_beside: int = 0  # texts of the retain set in each update of memorise: the model keeps its language
    num_own: int = 768  # texts sampled from the model itself to be kept beside the retain text; 0: none
    num_samples: int = 4  # sampled continuations a passage in the evaluation
    el_stride: int = 0  # extraction likelihood (EL) from every so many-th start of a passage, slow; 0: none
    el_passages: int | None = None  # EL of the first so many passages of each group; none: of all
    eval_dtype: Literal["same", "bfloat16"] = "same"  # of the copy that the evaluation asks: faster, a little coarser
    device: str = "auto"  # auto, cpu or cuda
    resume: bool = False  # go on from the last checkpoint in the folder
    live: bool = False  # rewrite report.html while training; open it in a browser, it loads itself again

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("el_passages", "num_forget", "num_holdout", "steps", "check_every", "memorise_epochs", "windows"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "must be at least 1")
        counts = ("lora_rank", "memorise_beside", "num_own", "num_samples", "num_never", "el_stride")
        for name in (*counts, "fluency_weight"):
            value = getattr(self, name)
            require(value is None or value >= 0, self, name, "must be at least 0")
        require(self.preset in PRESETS, self, "preset", f"must be one of {', '.join(PRESETS)}")
        require(self.encoder is None or self.is_paper, self, "encoder", "goes with --preset paper: ours takes BLEU")
        require(0 <= self.fluency_low < self.fluency_high, self, "fluency_low", "must lie between 0 and fluency_high")

    def evaluation(self, seed: int) -> Settings:
        """How a model is evaluated."""
        return Settings(num_samples=self.num_samples, el_stride=self.el_stride, el_passages=self.el_passages, seed=seed)

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model that the evaluation asks: itself, or a copy in ``eval_dtype``."""
        return model if self.eval_dtype == "same" else copy.deepcopy(model).to(torch.bfloat16)

    @property
    def is_paper(self) -> bool:
        """Whether the reward is the paper's."""
        return self.preset != "default"

    @property
    def most_steps(self) -> int:
        """``steps``, or what the preset takes."""
        return self.steps or (4 if self.preset == "paper-as-run" else 60)


OF_ATTACK = ("model", "data", "data_split", "retain", "num_forget", "num_holdout", "num_never", "num_samples",
             "el_stride", "el_passages", "eval_dtype")  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # Ours. No KL penalty against the model that memorised, since it would defend every memorised token; a KL loss on
    # text to keep instead. Every token gets the BLEU that it adds, and the reward ends at the chance floor.
    "default": {
        "prompts_per_step": 64, "minibatch": 32, "epochs": 2, "learning_rate": 2e-4, "kl_coef": 0.0,
        "retain_coef": 2.5, "retain_loss": "kl", "retain_sequences": 12, "retain_tokens": 152,
        "detach_value_head": True, "value_learning_rate": 1e-3, "value_clip": None, "gae_lambda": 0.9,
        "save_every_steps": 10,
    },
    # What the paper sets, on this engine: KL acts, no token of a prompt is an action, empty text is no success.
    "paper": {
        "prompts_per_step": 32, "minibatch": 8, "epochs": 8, "learning_rate": 1.41e-5, "kl_coef": 0.2,
        "save_every_steps": 10,
    },
    # The same as its notebook ran: unlearning/notebook.py says what else was different.
    "paper-as-run": {
        "prompts_per_step": 32, "minibatch": 8, "epochs": 8, "learning_rate": 1.41e-5, "kl_coef": 0.2,
        "response_length": 55, "old_logprobs": "recompute",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run: its options, config and folder, the model as it is now, the data, and the reward's encoder, if any.

    ``processes``: this one among those that train together.
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
        """Where this run's numbers come from."""
        of_run = {"model": self.options.model, "data": self.options.data, "preset": self.options.preset}
        device = next(self.loaded.model.parameters()).device
        several = {"processes": self.processes.count} if self.processes.count > 1 else {}
        return of_run | {"seed": self.config.seed} | provenance(device) | several


def prepare(command: str, parsed: argparse.Namespace, processes: Processes = Processes()) -> Run:
    """Load what the command works on, and refuse, before any work, what cannot work."""
    options, changes = processes.first(lambda: read_options(command, parsed))
    with processes.together():
        run = load_run(options, changes, processes)
        if command in ("run", "train"):
            processes.check(run.config)
        if processes.is_first:
            write_json(run.out / "config.json", {"options": asdict(options), "config": run.config.to_dict()})
    return run


def load_run(options: Options, changes: Mapping[str, Any], processes: Processes) -> Run:
    """Model, data and config of a run, held against each other."""
    loaded = load(options.model).on(options.device)
    study = load_study(
        options.data,
        loaded.tokenizer,
        vocabulary_size(loaded.model),
        split=options.data_split,
        retain=options.retain,
        num_forget=options.num_forget,
        num_holdout=options.num_holdout,
        num_never=options.num_never,
    )
    if study.num_left_out:
        say(f"{study.num_left_out} passages of {options.data} are not used: see --num-forget and --num-holdout")
    if not study.group("forget"):
        raise ValueError(f"--data {options.data} has no passage in the group 'forget': there is nothing to unlearn")
    usual = median_high(len(p.suffix) for p in study.group("forget"))
    config = ppo.Config.from_dict({"response_length": usual, **changes})
    if options.preset == "default" and "min_response_length" not in changes:
        # Else it learns to end early: of a short text little is right, and nothing is wrong.
        config = config.replace(min_response_length=config.response_length)
    if options.lora_rank and config.sharding != "none":
        raise ValueError(f"--lora-rank {options.lora_rank} merges the adapter at the end: leave --sharding at none")
    check_fits(study, context_length(loaded.model), config.response_length)
    device = next(loaded.model.parameters()).device
    encoder = BertScore.load(options.encoder, device=device) if options.encoder else None
    return Run(options, config, loaded, study, encoder, processes)


def read_options(command: str, parsed: argparse.Namespace) -> tuple[Options, dict[str, Any]]:
    """The options, and what differs from ppo.Config's defaults.

    Settings that were not given come from the run's folder, then from the preset; a run goes on as it began.
    """
    given, given_config = given_values(parsed, Options), given_values(parsed, ppo.Config)
    out, is_resumed = Path(given.get("out", Options.out)), given.get("resume", False)
    is_new = command in ("run", "attack", "memorise") and not is_resumed
    saved = {} if is_new or not (out / "config.json").is_file() else read_settings(out)
    if not saved and (command == "evaluate" or is_resumed):
        raise ValueError(f"--out {out} holds no run to go on with: there is no config.json in it")
    if command == "train" and not is_resumed:
        check_untrained(out)  # the folder may hold an attack: data and evaluation are settled, the training is not
        check_same(saved, {name: value for name, value in given.items() if name in OF_ATTACK}, {})
    else:
        check_same(saved, given, given_config)
    options, changes = join_settings(saved, given, given_config)
    check_folder(out, is_new=is_new or not saved)
    return options, changes


def join_settings(
    saved: Mapping[str, Any], given: Mapping[str, Any], given_config: Mapping[str, Any]
) -> tuple[Options, dict[str, Any]]:
    """What was given, over what a folder's config.json holds (or nothing), over the preset."""
    options = Options(**{**saved.get("options", {}), "resume": False, "live": False, **given})
    is_same_preset = options.preset == saved.get("options", {}).get("preset")
    changes = {**(saved["config"] if is_same_preset else PRESETS[options.preset]), **given_config}
    ppo.Config.from_dict(changes)  # a wrong setting is found before a model is loaded
    return options, changes


def say(text: str) -> None:
    """One message to the reader."""
    print(text, flush=True)
