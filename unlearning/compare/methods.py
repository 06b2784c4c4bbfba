"""What ``demem.py compare`` compares: every method by its name, with its knob and what it does to the original model.

Methods that train get the same windows of the same passages and, for each seed, the same text to keep; on request, the
same number of updates (:mod:`unlearning.compare.terms`). The knob of a method is what it calls its strength. It has
three values, one of which is the default; defaults were tried out on the lab. A method takes :class:`Inputs`, a value
of its knob and a seed. It gives an :class:`UnlearnedModel`: a model, a way to decode, and what they cost.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from tqdm import tqdm

from data.types import Passage
from eval.baselines import distillation, dpo, gradient_ascent, jensun, preference, reweighted, rmu, undial, undo
from eval.baselines.decoding import MemFree, dp_decoding, logit_mixing
from eval.baselines.training import Pair, StepLog, Training, pairs_of
from eval.cost import Cost, Tokens, baseline_tokens, count_parameters
from unlearning.compare.alternatives import encoded, refusals, swapped
from unlearning.compare.bench import Inputs, StopLog, UnlearnedModel, look_tokens, own_tokens, shown_on, stop_rule
from unlearning.compare.budget import rival_budget
from unlearning.compare.retrained import RetrainedKind
from unlearning.deep.recipe import levels_of

Kind = Literal["original", "training", "decoding", "retraining"]


Apply = Callable[[Inputs, float, int], UnlearnedModel]


@dataclass(frozen=True)
class Method:
    """A row of the table. ``values`` of the knob go from gentle to strong; ``default`` is one of them.

    A method without a knob has an empty ``knob`` and the value 0. ``preset``: of DeMem, where it is that.
    """

    kind: Kind
    apply: Apply
    knob: str = ""
    values: tuple[float, ...] = (0.0,)
    default: float = 0.0
    is_seeded: bool = True  # whether a seed changes anything but the order of the rows
    preset: str = ""


# ---------------------------------------------------------------------- in training


def trained(
    inputs: Inputs,
    seed: int,
    training: Training,
    unlearn: Callable[..., StepLog],
    *,
    asks: str = "",
    is_whole: bool = False,
    rows: Sequence[Passage] | None = None,
    beside: Sequence[Pair] = (),
    phases: int = 1,
) -> UnlearnedModel:
    """Train a baseline on a copy of the original: until the forget set is gone, or for all of the updates it is given.

    Retain batches and precision are DeMem's, and so is a number of steps that was asked for. ``asks``: whether the
    original computes, too: "once" before the first step, or "always", in every step; empty: never. ``is_whole``: by
    itself it would not end early, as the preset deep would not. ``rows``: what it forgets, each a context (prefix) and
    tokens (suffix); None: those of the comparison. ``beside``: what else passes the model with each row, for its cost.
    ``phases``: so many trainings share the updates, and ``unlearn`` is told of the first.
    """
    started, options, terms = time.perf_counter(), inputs.run.options, inputs.terms
    forget_on = terms.forget_on if rows is None else "suffix"
    rows = terms.rows_of(inputs.forget, seed=seed) if rows is None else rows
    training = given_to(inputs, training, phases=phases)
    ends_early = not is_whole if options.early_end == "own" else options.ends_early
    model, keep = copy.deepcopy(inputs.model), inputs.keep(seed) if training.retain_weight else []
    inputs.work.mkdir(parents=True, exist_ok=True)
    looks = StopLog(inputs.work / "looks.json")
    with tqdm(total=training.steps, desc="baseline", unit="step") as bar:
        log = unlearn(
            model, rows, keep, training=training, generator=torch.Generator().manual_seed(seed),
            stop=stop_rule(inputs, model, looks, bar) if ends_early else shown_on(bar),
        )  # fmt: skip
    pairs = pairs_of(rows, training.scope)
    budget = rival_budget(
        pairs, training, num_updates=len(log), most_updates=training.steps * phases, kept=keep, forget_on=forget_on,
        early_end=ends_early, look_every=terms.look_every(options) if ends_early else 0,
    )  # fmt: skip
    if beside:
        pairs = [
            (context, [*tokens, *more, *other]) for (context, tokens), (more, other) in zip(pairs, beside, strict=True)
        ]
    tokens = baseline_tokens(pairs, training, log, asks_once=asks == "once", asks_always=asks == "always")
    tokens = (
        tokens
        + look_tokens(inputs) * len(looks.until(len(log)))
        + (own_tokens(inputs) if training.retain_weight else Tokens())
    )
    # Seconds before a kill count as well: the log knows them, the clock does not.
    cost = Cost(max(time.perf_counter() - started, log[-1]["seconds"]), tokens, count_parameters(model))
    until_stop = [row for row in log if row.get("phase", 1.0) == 1.0]  # UNDO goes on after it
    is_stopped = len(until_stop) < training.steps
    notes = {"steps": len(log), "is_stopped": is_stopped, "learning_rate": training.learning_rate}
    return UnlearnedModel(model, cost, notes=notes, budget=budget)


def given_to(inputs: Inputs, training: Training, *, phases: int = 1) -> Training:
    """The training of a rival on the terms of its comparison, with DeMem's text to keep. ``phases`` share the updates.

    A method that takes all passages in every step takes as many rows.
    """
    options, config, terms = inputs.run.options, inputs.run.config, inputs.terms
    steps = options.steps or training.steps if terms.updates is None else terms.updates // phases
    batch = training.batch or len(inputs.forget) if terms.updates is None else terms.rows
    return replace(
        training, steps=steps, batch=batch, retain_sequences=config.retain_sequences,
        retain_tokens=config.retain_tokens, microbatch=config.microbatch or training.microbatch,
        autocast=config.autocast, checkpoint=inputs.work / "checkpoint",
    )  # fmt: skip


# Only DeMem has a floor in its loss; the others end by the stopping rule. All retain losses see DeMem's text to keep.
# Rows are a context and the tokens to forget behind it, whatever the comparison puts there: so the scope is the suffix.
ASCENT = Training(steps=40, max_grad_norm=None)
BALANCED = Training(steps=120, batch=32, retain_weight=2.5, retain_loss="kl")


def _ascent(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(inputs, seed, replace(ASCENT, learning_rate=value), gradient_ascent.unlearn)


def balanced(inputs: Inputs, learning_rate: float, retain_weight: float) -> Training:
    """The training of a baseline that keeps text beside forgetting."""
    return replace(BALANCED, learning_rate=inputs.rate or learning_rate, retain_weight=retain_weight)


def _difference(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(inputs, seed, balanced(inputs, 1e-4, value), gradient_ascent.unlearn_with_difference)


def _npo(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    unlearn = partial(preference.unlearn_npo, beta=0.1)
    return trained(inputs, seed, balanced(inputs, 2e-4, value), unlearn, asks="once")


def _simnpo(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    unlearn = partial(preference.unlearn_simnpo, beta=2.5, delta=0.0)
    return trained(inputs, seed, balanced(inputs, 2e-4, value), unlearn)


def _distil(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(inputs, seed, balanced(inputs, 2e-4, value), distillation.unlearn, asks="always")


def _distil_deep(is_reverse: bool, inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    rows, study = inputs.terms.rows_of(inputs.forget, seed=seed), inputs.run.study
    found = levels_of(study, inputs.model, inputs.run.loaded.tokenizer, seed=seed)
    levels = dict(zip((p.id for p in inputs.forget), found.levels, strict=True))
    unlearn = partial(distillation.unlearn, chances=[levels[row.id] for row in rows], is_reverse=is_reverse)
    training = replace(balanced(inputs, 3e-4, value), steps=280, batch=16)  # as many updates as the preset deep has
    return trained(inputs, seed, training, unlearn, asks="always", is_whole=True)


# What follows was tried on the lab for some steps only: docs/demem.md says what that means for its rates and weights.


def _undial(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(inputs, seed, balanced(inputs, 2e-4, 10.0), partial(undial.unlearn, beta=value), asks="always")


def _wga(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(inputs, seed, balanced(inputs, 2e-4, value), partial(reweighted.unlearn_wga, beta=1.0))


def _satimp(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    return trained(
        inputs, seed, balanced(inputs, 2e-4, value), partial(reweighted.unlearn_satimp, beta1=5.0, beta2=1.0)
    )


def _jensun(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    refusal = encoded(inputs.run.loaded, " No idea")
    return trained(inputs, seed, balanced(inputs, 2e-4, value), partial(jensun.unlearn, refusal=refusal))


def _rmu(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    unlearn = partial(rmu.unlearn, strength=value)
    return trained(inputs, seed, balanced(inputs, 2e-3, 5.0), unlearn, asks="once")


def _undo(inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    training, updates = balanced(inputs, 2e-4, 10.0), inputs.terms.updates
    distil_steps = inputs.run.options.steps or training.steps if updates is None else updates - updates // 2
    unlearn = partial(undo.unlearn, alpha=value, distil_steps=distil_steps)
    return trained(inputs, seed, training, unlearn, asks="always", phases=1 if updates is None else 2)


def _dpo(rule: Callable[..., list[list[list[int]]]], inputs: Inputs, value: float, seed: int) -> UnlearnedModel:
    others = rule(inputs.run, inputs.forget, seed=seed)
    unlearn = partial(dpo.unlearn, beta=0.1, alternatives=others)
    beside = [(list(p.prefix), options[0]) for p, options in zip(inputs.forget, others, strict=True)]
    rows = inputs.forget  # both answers follow the prefix
    return trained(inputs, seed, balanced(inputs, 2e-4, value), unlearn, asks="once", rows=rows, beside=beside)


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


def demem(preset: str, knob: str, values: tuple[float, ...], default: float) -> Method:
    """DeMem with a preset as a method."""
    return Method("training", partial(_demem, preset, knob), knob, values, default, preset=preset)


METHODS: dict[str, Method] = {
    "original": Method("original", _original, is_seeded=False),
    "demem": demem("demem", "retain_coef", (5.0, 2.5, 1.25), 2.5),
    "deep": demem("deep", "retain_coef", (6.6, 3.3, 1.65), 3.3),
    "deep-supervised": demem("deep-supervised", "retain_coef", (6.6, 3.3, 1.65), 3.3),
    "demem-lora": demem("demem", "lora_rank", (4, 16, 64), 16),
    "paper": demem("paper", "steps", (4, 15, 60), 60),
    "paper-as-run": demem("paper-as-run", "steps", (1, 2, 4), 1),
    "ul": Method("training", _ascent, "learning_rate", (2e-5, 5e-5, 1e-4), 5e-5, is_seeded=False),
    "graddiff": Method("training", _difference, "retain_weight", (40.0, 20.0, 10.0), 20.0),
    "npo": Method("training", _npo, "retain_weight", (10.0, 5.0, 2.5), 5.0),
    "simnpo": Method("training", _simnpo, "retain_weight", (40.0, 20.0, 5.0), 20.0),
    "distil": Method("training", _distil, "retain_weight", (30.0, 10.0, 2.5), 10.0),
    "distil-deep": Method("training", partial(_distil_deep, False), "retain_weight", (6.6, 3.3, 1.65), 3.3),
    "kl-deep": Method("training", partial(_distil_deep, True), "retain_weight", (6.6, 3.3, 1.65), 3.3),
    "grpo": demem("grpo", "retain_coef", (5.0, 2.5, 1.25), 2.5),
    "undial": Method("training", _undial, "beta", (3.0, 10.0, 30.0), 10.0),
    "wga": Method("training", _wga, "retain_weight", (10.0, 5.0, 2.5), 5.0),
    "satimp": Method("training", _satimp, "retain_weight", (0.2, 0.1, 0.05), 0.1),
    "jensun": Method("training", _jensun, "retain_weight", (3.0, 1.0, 0.3), 1.0),
    "rmu": Method("training", _rmu, "strength", (1.0, 2.0, 4.0), 2.0),
    "undo": Method("training", _undo, "alpha", (0.05, 0.1, 0.2), 0.1),
    "dpo": Method("training", partial(_dpo, refusals), "retain_weight", (10.0, 5.0, 2.5), 5.0),
    "dpo-swapped": Method("training", partial(_dpo, swapped), "retain_weight", (10.0, 5.0, 2.5), 5.0),
    "dp": Method("decoding", _dp, "lambda", (0.9, 0.7, 0.5), 0.7, is_seeded=False),
    "dp-logits": Method("decoding", _dp_logits, "lambda", (0.9, 0.7, 0.5), 0.7, is_seeded=False),
    "memfree": Method("decoding", _memfree, "n", (20, 10, 5), 10, is_seeded=False),
    "without-forget": Method("retraining", partial(_retrained, "without-forget")),
    "retain-only": Method("retraining", partial(_retrained, "retain-only")),
    "dedup": Method("retraining", partial(_retrained, "dedup")),
}
