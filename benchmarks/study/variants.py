"""What the lab study switches: DeMem's recipe with one ingredient, or the model that it starts from, changed.

A variant is a change of :class:`unlearning.options.Options`, of :class:`ppo.Config`, of the reward, of the KL
reference, or a distillation before the first PPO step. This module knows how to switch, not how to train or to measure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

import rewards.demem as presets
from ppo.lm.backbone import end_ids
from ppo.types import Reference, Sample
from rewards.bertscore import BertScore, BertScoreMeasure
from rewards.combine import Reward, Term
from rewards.counterfactual import CounterfactualReference
from rewards.guards import Guards
from unlearning.run import Run

DISTILLATION_STEPS = 120  # at most; the comparison's own number
WARM_STEPS = 20  # PPO steps after a distillation that has done the forgetting
LONG_STEPS = 200  # of a distillation: as many updates as DISTILLATION_STEPS and WARM_STEPS of 4 minibatches together
ENCODER_LAYER = 2  # of the lab's four blocks: the last one's states all point to the next token


@dataclass(frozen=True)
class Setting:
    """What a reward or a reference is made from: the run, the BLEU of chance, the model before any training."""

    run: Run
    floor: float
    original: nn.Module


MakeReward = Callable[[Setting], Reward]
MakeReference = Callable[[Setting], Reference]


@dataclass(frozen=True)
class Variant:
    """One recipe.

    label         what is switched, for a table
    options       changes of the run's options; config: changes of the default preset
    reward        its name in ``REWARDS``; reference: in ``REFERENCES``, "" for the trainer's own
    distil_steps  of counterfactual distillation before PPO, at most; 0: none
    is_trained    whether PPO follows
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "default"
    reference: str = ""
    distil_steps: int = 0
    is_trained: bool = True


# ---------------------------------------------------------------------- rewards


def dense_bleu(setting: Setting) -> Reward:
    """DeMem's recipe's reward."""
    return presets.default(bleu_floor=setting.floor, dense="words", decode=setting.run.loaded.decode)


def sparse_bleu(setting: Setting) -> Reward:
    return presets.default(bleu_floor=setting.floor, dense="no")


def unguarded(setting: Setting) -> Reward:
    return replace(dense_bleu(setting), guards=None)


def without_repetition(setting: Setting) -> Reward:
    decode = setting.run.loaded.decode
    return presets.default(bleu_floor=setting.floor, dense="words", decode=decode, repetition_weight=0.0)


def without_floor(setting: Setting) -> Reward:
    """A BLEU below chance is rewarded, too. The stopping rule is the usual one."""
    return presets.default(bleu_floor=0.0, dense="words", decode=setting.run.loaded.decode)


@dataclass(frozen=True)
class AboveFloor:
    """A measure in [0, 1]: values up to ``floor`` become 0, those above are stretched to [0, 1] again."""

    measure: Callable[[Sequence[Sample]], list[float]]
    floor: float

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [max(0.0, value - self.floor) / (1 - self.floor) for value in self.measure(samples)]


def semantic(setting: Setting) -> Reward:
    """The default reward with BERTScore in the place of BLEU, one score a response.

    No encoder comes with the project, so the hidden states of the original model after half of its blocks take its
    place. The floor is the mean score of one record's suffix against the next one's.
    """
    tokenizer = copy.deepcopy(setting.run.loaded.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    score = BertScore(setting.original, tokenizer, name="original", layer=ENCODER_LAYER)
    truths = [setting.run.loaded.decode(p.suffix) for p in setting.run.study.group("forget")]
    floor = float(score(truths, truths[1:] + truths[:1]).f1.mean()) if len(truths) > 1 else 0.0
    signature = f"{score.signature}|floor:{floor:.3f}"
    repetition = presets.default(dense="no").terms[1]
    term = Term("bertscore", -1.0, AboveFloor(BertScoreMeasure(score), floor), signature=signature)
    return Reward((term, repetition), Guards())


REWARDS: dict[str, MakeReward] = {
    "default": dense_bleu,
    "sparse": sparse_bleu,
    "unguarded": unguarded,
    "without-repetition": without_repetition,
    "without-floor": without_floor,
    "semantic": semantic,
}


# ---------------------------------------------------------------------- references


def counterfactual(setting: Setting) -> Reference:
    """The original model with the true next token forbidden."""
    sampling = replace(setting.run.config.sampling(), eos_ids=end_ids(setting.original))
    return CounterfactualReference(setting.original, sampling)


REFERENCES: dict[str, MakeReference] = {"counterfactual": counterfactual}


# ---------------------------------------------------------------------- the recipes

_KL = {"kl_coef": 0.2}  # and the paper's adaptive controller
_AFTER = {"steps": WARM_STEPS, "check_every": WARM_STEPS + 1}  # no look, so no early end: the forgetting is done

VARIANTS: dict[str, Variant] = {
    "base": Variant("DeMem's recipe"),
    "kl-plain": Variant("a KL penalty to the original on forget prompts, the paper's", config=_KL),
    "kl-counterfactual": Variant(
        "the same penalty, but to the counterfactual reference", config=_KL, reference="counterfactual"
    ),
    "no-retain": Variant("no loss on text to keep", config={"retain_coef": 0.0}),
    "retain-lm": Variant("language-model loss on text to keep, instead of KL", config={"retain_loss": "lm"}),
    "no-own": Variant("no text of the model's own to keep", {"num_own": 0}),
    "sparse": Variant("one score a response, instead of one a token", reward="sparse"),
    "one-window": Variant("one window a passage, instead of two", {"windows": 1}),
    "cool": Variant("rollouts at temperature 0.7", config={"temperature": 0.7}),
    "hot": Variant("rollouts at temperature 1.3", config={"temperature": 1.3}),
    "no-guards": Variant("no guards", reward="unguarded"),
    "no-repetition": Variant("repetition costs nothing", reward="without-repetition"),
    "no-floor": Variant("a BLEU below chance is rewarded, too", reward="without-floor"),
    "early-end": Variant("responses may end early", config={"min_response_length": 0}),
    "early-unguarded": Variant(
        "responses may end early, and no guards", config={"min_response_length": 0}, reward="unguarded"
    ),
    "attached": Variant("the value loss trains the policy's blocks, too", config={"detach_value_head": False}),
    "semantic": Variant("BERTScore instead of BLEU, sparse", reward="semantic"),
    "distil": Variant("counterfactual distillation, no PPO", distil_steps=DISTILLATION_STEPS, is_trained=False),
    "distil-long": Variant(
        f"distillation alone, {LONG_STEPS} steps: as many updates as `warm`",
        {"check_every": LONG_STEPS + 1},
        distil_steps=LONG_STEPS,
        is_trained=False,
    ),
    "warm": Variant(f"distillation, then {WARM_STEPS} PPO steps", _AFTER, distil_steps=DISTILLATION_STEPS),
    "warm-half": Variant("half of the distillation, then the recipe", distil_steps=DISTILLATION_STEPS // 2),
    "warm-semantic": Variant(
        f"distillation, then {WARM_STEPS} PPO steps with BERTScore",
        _AFTER,
        reward="semantic",
        distil_steps=DISTILLATION_STEPS,
    ),
}  # fmt: skip
"""``unguarded`` still counts repetition: guards and repetition are switched one at a time."""

BOTH = ("base", "distil")  # what the other parts of the study compare
