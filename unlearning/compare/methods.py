"""What ``demem.py compare`` compares: every method by its name, with its knob and what it does to the original model.

Methods that train get the same passages, the same stopping rule and, for each seed, the same text to keep. The knob of
a method is what it calls its strength. It has three values, one of which is the default; defaults were tried out on the
lab. A method takes :class:`Inputs`, a value of its knob and a seed. It gives an :class:`UnlearnedModel`: a model, a way
to decode, and what they cost.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from tqdm import tqdm

from eval.baselines import distillation, gradient_ascent, preference
from eval.baselines.decoding import MemFree, dp_decoding, logit_mixing
from eval.baselines.training import StepLog, Training, pairs_of
from eval.cost import Cost, Tokens, baseline_tokens, count_parameters
from unlearning.compare.bench import Inputs, StopLog, UnlearnedModel, look_tokens, own_tokens, stop_rule
from unlearning.compare.retrained import RetrainedKind
from unlearning.deep.recipe import levels_of

Kind = Literal["original", "training", "decoding", "retraining"]


Apply = Callable[[Inputs, float, int], UnlearnedModel]


@dataclass(frozen=True)
class Method:
    """A row of the table. ``values`` of the knob go from gentle to strong; ``default`` is one of them.

    A method without a knob has an empty ``knob`` and the value 0.
    """

    kind: Kind
    apply: Apply
    knob: str = ""
    values: tuple[float, ...] = (0.0,)
    default: float = 0.0
    is_seeded: bool = True  # whether a seed changes anything


# ---------------------------------------------------------------------- in training


def trained(
    inputs: Inputs,
    seed: int,
    training: Training,
    unlearn: Callable[..., StepLog],
    *,
    asks: str = "",
    is_whole: bool = False,
) -> UnlearnedModel:
    """Train a baseline on a copy of the original until the forget set is gone.

    Retain batches and precision are DeMem's, and so is a number of steps that was asked for. ``asks``: whether the
    original computes, too: "once" before the first step, or "always", in every step; empty: never. ``is_whole``: no
    look ends it early, as with the preset deep.
    """
    started, options, config = time.perf_counter(), inputs.run.options, inputs.run.config
    training = replace(
        training, steps=options.steps or training.steps, retain_sequences=config.retain_sequences,
        retain_tokens=config.retain_tokens, microbatch=config.microbatch or training.microbatch,
        autocast=config.autocast, checkpoint=inputs.work / "checkpoint",
    )  # fmt: skip
    model, keep = copy.deepcopy(inputs.model), inputs.keep(seed) if training.retain_weight else []
    inputs.work.mkdir(parents=True, exist_ok=True)
    looks = StopLog(inputs.work / "looks.json")
    with tqdm(total=training.steps, desc="baseline", unit="step") as bar:
        log = unlearn(
            model, inputs.forget, keep, training=training, generator=torch.Generator().manual_seed(seed),
            stop=None if is_whole else stop_rule(inputs, model, looks, bar),
        )  # fmt: skip
    pairs = pairs_of(inputs.forget, training.scope)
    tokens = baseline_tokens(pairs, training, log, asks_once=asks == "once", asks_always=asks == "always")
    tokens = (
        tokens
        + look_tokens(inputs) * len(looks.until(len(log)))
        + (own_tokens(inputs) if training.retain_weight else Tokens())
    )
    # Seconds before a kill count as well: the log knows them, the clock does not.
    cost = Cost(max(time.perf_counter() - started, log[-1]["seconds"]), tokens, count_parameters(model))
    notes = {"steps": len(log), "is_stopped": len(log) < training.steps, "learning_rate": training.learning_rate}
    return UnlearnedModel(model, cost, notes=notes)


# Only DeMem has a floor in its loss; the others end by the stopping rule. All retain losses see DeMem's text to keep.
ASCENT = Training(scope="whole", steps=40, max_grad_norm=None)
BALANCED = Training(scope="whole", steps=120, batch=32, retain_weight=2.5, retain_loss="kl")


def _ascent(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(inputs, seed, replace(ASCENT, learning_rate=value), gradient_ascent.unlearn)


def balanced(inputs: Inputs, learning_rate: float, retain_weight: float) -> Training:
    """The training of a baseline that keeps text beside forgetting."""
    return replace(BALANCED, learning_rate=inputs.rate or learning_rate, retain_weight=retain_weight)


def _difference(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    training = replace(balanced(inputs, 1e-4, value), scope="suffix")
    return trained(inputs, seed, training, gradient_ascent.unlearn_with_difference)


def _npo(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    unlearn = partial(preference.unlearn_npo, beta=0.1)
    return trained(inputs, seed, balanced(inputs, 2e-4, value), unlearn, asks="once")


def _simnpo(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    unlearn = partial(preference.unlearn_simnpo, beta=2.5, delta=0.0)
    return trained(inputs, seed, balanced(inputs, 2e-4, value), unlearn)


def _distil(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(inputs, seed, balanced(inputs, 2e-4, value), distillation.unlearn, asks="always")


def _distil_deep(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    found = levels_of(inputs.run.study, inputs.model, seed=seed)
    unlearn = partial(distillation.unlearn, chances=found.levels)
    training = replace(balanced(inputs, 3e-4, value), steps=240, batch=16)  # as many updates as the preset deep has
    return trained(inputs, seed, training, unlearn, asks="always", is_whole=True)


def _demem(preset: str, knob: str, inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return inputs.unlearn(preset, knob, value, inputs.work, seed)


# ---------------------------------------------------------------------- while decoding, and from scratch


def free(inputs: Inputs) -> Cost:
    """The cost of a method that trains nothing."""
    return Cost(0.0, Tokens(), count_parameters(inputs.model))


def _original(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return UnlearnedModel(inputs.model, free(inputs))


def _dp(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return UnlearnedModel(inputs.model, free(inputs), context=lambda: dp_decoding(inputs.model, strength=value))


def _dp_logits(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return UnlearnedModel(inputs.model, free(inputs), context=lambda: logit_mixing(inputs.model, strength=value))


def _memfree(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    blocked = [list(p.ids) for p in inputs.forget]
    memfree = MemFree(blocked, n=round(value))
    return UnlearnedModel(inputs.model, free(inputs), generate=memfree, can_write=memfree.can_write)


def _retrained(kind: RetrainedKind, inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    found = inputs.retrained.get(kind, seed)
    return UnlearnedModel(found.model, found.cost, notes=found.notes)


METHODS: dict[str, Method] = {
    "original": Method("original", _original, is_seeded=False),
    "demem": Method("training", partial(_demem, "default", "retain_coef"), "retain_coef", (5.0, 2.5, 1.25), 2.5),
    "deep": Method("training", partial(_demem, "deep", "retain_coef"), "retain_coef", (6.6, 3.3, 1.65), 3.3),
    "demem-lora": Method("training", partial(_demem, "default", "lora_rank"), "lora_rank", (4, 16, 64), 16),
    "paper": Method("training", partial(_demem, "paper", "steps"), "steps", (4, 15, 60), 60),
    "paper-as-run": Method("training", partial(_demem, "paper-as-run", "steps"), "steps", (1, 2, 4), 4),
    "ul": Method("training", _ascent, "learning_rate", (2e-5, 5e-5, 1e-4), 5e-5, is_seeded=False),
    "graddiff": Method("training", _difference, "retain_weight", (40.0, 20.0, 10.0), 20.0),
    "npo": Method("training", _npo, "retain_weight", (10.0, 5.0, 2.5), 5.0),
    "simnpo": Method("training", _simnpo, "retain_weight", (40.0, 20.0, 5.0), 20.0),
    "distil": Method("training", _distil, "retain_weight", (30.0, 10.0, 2.5), 10.0),
    "distil-deep": Method("training", _distil_deep, "retain_weight", (6.6, 3.3, 1.65), 3.3),
    "dp": Method("decoding", _dp, "lambda", (0.9, 0.7, 0.5), 0.7, is_seeded=False),
    "dp-logits": Method("decoding", _dp_logits, "lambda", (0.9, 0.7, 0.5), 0.7, is_seeded=False),
    "memfree": Method("decoding", _memfree, "n", (20, 10, 5), 10, is_seeded=False),
    "without-forget": Method("retraining", partial(_retrained, "without-forget")),
    "retain-only": Method("retraining", partial(_retrained, "retain-only")),
    "dedup": Method("retraining", partial(_retrained, "dedup")),
}
