"""The options of a DeMem run, and the presets of :class:`ppo.Config` that go with them.

This module knows the settings and their bounds. unlearning/run.py makes a run of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from data.secrets import check_secrets_option
from eval.settings import Settings
from ppo.io.fields import check_types, require


@dataclass(frozen=True)
class Options:
    """What to work on and when to stop. :class:`ppo.Config` holds everything about PPO itself."""

    # Data
    model: str = "lab"  # lab, lab:deduplicated, lab:retain-only, lab:without-forget, a hub id, a folder, a .gguf
    data: str = "lab"  # lab, a folder of challenge .npy files, a .csv or .jsonl file, or such as hubble:FOLDER
    data_split: str | None = None  # which of a folder's .npy files or a benchmark's splits; none: the only one, or val
    retain: tuple[str, ...] = ()  # text or .jsonl files to keep; none: Python's own documentation
    num_forget: int | None = None  # passages to unlearn, where the data names no groups; none: all that are left
    num_holdout: int | None = None  # memorised passages that unlearning never sees, sharing no 20-gram; none: 0
    secrets: str | None = None  # pii, none, or re: with a regular expression; none: the data's own, or an estimate
    num_never: int | None = None  # passages that the model never saw, for the chance floor; none: 0
    # Folder
    out: str = "runs/demem"  # folder of the run
    # Recipe
    preset: str = "deep"  # deep, deep-supervised, demem, paper, grpo, or paper-as-run: the notebook with its flaws
    encoder: str | None = None  # encoder of the paper's BERTScore, a hub id or folder; none: BLEU
    fluency_weight: float = 0.0  # reward lost for a nat per token outside the fluency band; 0: no band
    fluency_low: float = 0.5  # nats per token under the original model; loops and memorised text lie below
    fluency_high: float = 6.0  # nats per token under the original model; gibberish lies above
    lora_rank: int = 0  # rank of an adapter that is trained, then merged; 0: the weights themselves are trained
    actions: int = 32  # of preset deep: tokens drawn at each state of a passage
    heat: float = 2.0  # of preset deep: what divides the logits where the policy is certain of the true token
    own_rows: int = 5  # of preset deep: continuations of the policy itself beside ten windows of each passage
    siblings: int = 64  # of preset deep: at most so many texts of that form, recited by the model, are unlearned, too
    windows: int | None = None  # places of a passage to train on; 1: the suffix; none: 2 (paper: 1, deep: all)
    # Stopping
    steps: int | None = None  # PPO steps at most; none: 60 (deep: 70, all of them; paper-as-run: 1)
    check_every: int = 2  # steps between two looks at the forget set
    target_exact: float = 0.05  # share of the forget set that may still be extractable at the end
    bleu_floor: float | None = None  # BLEU that a model reaches by chance; none: measured on never-trained passages
    early_end: Literal["own", "on", "off"] = "own"  # end once all is forgotten; own: as the preset does, deep never
    # Memorising
    memorise_epochs: int = 12  # epochs at most
    memorise_beside: int = 0  # texts of the retain set in each update, so that the model keeps its language
    # Text to keep
    num_own: int = 768  # texts that the model writes itself, kept beside the retain text; 0: none
    # Evaluation
    num_samples: int = 4  # sampled continuations a passage
    el_stride: int = 0  # extraction likelihood (EL) from every N-th start of a passage, slow; 0: none
    el_passages: int | None = None  # EL of the first N passages of each group; none: of all
    near_passes: int = 0  # texts near each suffix that are searched for, for a bound of near-verbatim leaks; 0: none
    eval_dtype: Literal["same", "bfloat16"] = "same"  # bfloat16: a copy is evaluated, faster, a little coarser
    # Machine
    device: str = "auto"  # auto (the accelerator, if there is one), cpu, cuda, cuda:1, mps, xpu, …
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; bfloat16 halves them, a little coarser
    resume: bool = False  # go on from the last checkpoint in the folder
    live: bool = False  # rewrite report.html while training; the page loads itself again in the browser

    def __post_init__(self) -> None:
        check_types(self)
        check_secrets_option(self.secrets)
        for name in ("el_passages", "num_forget", "steps", "check_every", "memorise_epochs", "windows"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "must be at least 1")
        counts = (
            "lora_rank",
            "own_rows",
            "siblings",
            "memorise_beside",
            "num_own",
            "num_samples",
            "num_holdout",
            "num_never",
            "el_stride",
            "near_passes",
        )
        for name in (*counts, "fluency_weight"):
            value = getattr(self, name)
            require(value is None or value >= 0, self, name, "must be at least 0")
        require(self.preset in PRESETS, self, "preset", f"must be one of {', '.join(PRESETS)}")
        for name in ("actions", "heat"):
            require(getattr(self, name) >= 1, self, name, "must be at least 1")
        is_one = self.windows in (None, 1)
        require(not self.is_deep or is_one, self, "windows", "must be 1 with preset deep, the suffix, or not be given")
        require(not self.is_deep or not self.fluency_weight, self, "fluency_weight", "is not of preset deep: no score")
        require(self.encoder is None or self.is_paper, self, "encoder", "goes with --preset paper: ours takes BLEU")
        require(0 <= self.fluency_low < self.fluency_high, self, "fluency_low", "must lie between 0 and fluency_high")

    def evaluation(self, seed: int, secrets_by: str) -> Settings:
        """The settings of an evaluation. ``secrets_by``: how the passages' secrets were found."""
        return Settings(
            num_samples=self.num_samples,
            el_stride=self.el_stride,
            el_passages=self.el_passages,
            near_passes=self.near_passes,
            seed=seed,
            secrets_by=secrets_by,
        )

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model that the evaluation asks: itself, or a copy in ``eval_dtype``."""
        return model if self.eval_dtype == "same" else copy.deepcopy(model).to(torch.bfloat16)

    @property
    def is_paper(self) -> bool:
        """Whether the reward is the paper's."""
        return self.preset in ("paper", "paper-as-run")

    @property
    def is_deep(self) -> bool:
        """Whether every state of a passage is trained on (:mod:`unlearning.deep`)."""
        return self.preset in ("deep", "deep-supervised")

    @property
    def ends_early(self) -> bool:
        """Whether a training ends once looks find the forget set forgotten."""
        return not self.is_deep if self.early_end == "own" else self.early_end == "on"

    @property
    def most_steps(self) -> int:
        """``steps``, or the preset's number where none was given."""
        return self.steps or (70 if self.is_deep else 1 if self.preset == "paper-as-run" else 60)


# The options in groups. unlearning/command_line.py says which command takes which group.
DATA = ("model", "data", "data_split", "retain", "num_forget", "num_holdout", "num_never", "secrets")
RECIPE = (
    "windows",
    "actions",
    "heat",
    "own_rows",
    "siblings",
    "num_own",
    "lora_rank",
    "fluency_weight",
    "fluency_low",
    "fluency_high",
    "encoder",
)
STOPPING = ("steps", "check_every", "target_exact", "bleu_floor", "early_end")
EVALUATION = ("num_samples", "el_stride", "el_passages", "near_passes", "eval_dtype")
MEMORISING = ("memorise_epochs", "memorise_beside")
OF_ATTACK = DATA + EVALUATION  # an attack settles these for the training after it

# The knobs of ppo.Config that people change; --help-all has the others.
PPO_KNOBS = ("prompts_per_step", "minibatch", "epochs", "learning_rate", "value_learning_rate", "kl_coef",
             "retain_coef", "retain_sequences", "response_length", "temperature", "policy_clip")  # fmt: skip
PPO_MACHINE = ("microbatch", "autocast", "gradient_checkpointing", "sharding", "save_every_steps")

# Of ``memorise``, which is plain fine-tuning.
MEMORISE = {"prompts_per_step": 64, "minibatch": 32, "learning_rate": 2e-4}

PRESETS: dict[str, dict[str, Any]] = {
    # Free rollouts and the paper's idea of a reward. A KL penalty to the model that memorised would defend every
    # memorised token. A KL loss on text to keep takes its place. Every token gets the BLEU that it adds. The reward
    # ends at the chance floor.
    "demem": {
        "prompts_per_step": 64, "minibatch": 32, "epochs": 2, "learning_rate": 2e-4, "kl_coef": 0.0,
        "retain_coef": 2.5, "retain_loss": "kl", "retain_sequences": 12, "retain_tokens": 152,
        "detach_value_head": True, "value_learning_rate": 1e-3, "value_clip": None, "gae_lambda": 0.9,
        "save_every_steps": 10,
    },
    # Ours, at every state of the passages (unlearning/deep). The score is 0, and KL to the bounded reference is all of
    # the reward. unlearning/run.py adds learning_rate, which falls to a tenth at the last step, and fits total_steps.
    "deep": {
        "prompts_per_step": 32, "minibatch": 16, "epochs": 2, "schedule": "linear", "total_steps": 78,
        "policy_clip": 0.3, "kl_coef": 1.0, "kl_controller": "fixed", "value_head": "none",
        "retain_coef": 3.3, "retain_loss": "kl", "retain_sequences": 12, "retain_tokens": 152, "save_every_steps": 10,
    },
    # The paper's settings on this engine: KL acts, no token of a prompt is an action, empty text is no success.
    "paper": {
        "prompts_per_step": 32, "minibatch": 8, "epochs": 8, "learning_rate": 1.41e-5, "kl_coef": 0.2,
        "save_every_steps": 10,
    },
    # The paper's notebook as it ran. unlearning/notebook.py says what else was different.
    "paper-as-run": {
        "prompts_per_step": 32, "minibatch": 8, "epochs": 8, "learning_rate": 1.41e-5, "kl_coef": 0.2,
        "response_length": 55, "old_logprobs": "recompute", "save_every_steps": 1,
    },
    # Like PURGE: a group of responses to each prompt, and a reward for those that emit nothing forbidden
    # (rewards/spans.py). Text to keep and windows are ours. A weak KL penalty stays, as in GRPO. None of it is tuned.
    "grpo": {
        "prompts_per_step": 8, "samples_per_prompt": 8, "minibatch": 32, "epochs": 2, "learning_rate": 2e-4,
        "advantage": "grpo", "kl_coef": 0.01, "kl_controller": "fixed", "retain_coef": 2.5, "retain_loss": "kl",
        "retain_sequences": 12, "retain_tokens": 152, "save_every_steps": 10,
    },
}  # fmt: skip
# The same states, references and settings without PPO, to tell what PPO adds: cross-entropy on tokens that are drawn
# from the reference.
PRESETS["deep-supervised"] = {name: value for name, value in PRESETS["deep"].items() if name != "policy_clip"}

# What a model card says of a preset.
METHOD = {
    "deep": "PPO at every state of the passages, towards the original with their tokens taken down to chance",
    "deep-supervised": "cross-entropy at every state of the passages, to the original with them taken down to chance",
    "demem": "DeMem: PPO with a negative-similarity reward, and a KL loss on text to keep",
    "paper": "DeMem: PPO with the paper's hyper-parameters",
    "paper-as-run": "DeMem with the settings and flaws of the paper's notebook",
    "grpo": "GRPO with a reward for responses that emit nothing forbidden",
}
