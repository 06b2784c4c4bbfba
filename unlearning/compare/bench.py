"""What a method of ``demem.py compare`` is given and what it gives back, and when a rival's training ends.

The stopping rule is DeMem's own. This module knows no method; they are in unlearning/compare/methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from eval.baselines.training import Stop
from eval.cost import Cost, Tokens
from eval.evaluate import probe
from eval.protocols import Generate
from ppo.generation import generate as ppo_generate
from ppo.io.files import read_json, write_json
from unlearning.compare.budget import Budget
from unlearning.compare.retrained import RetrainedModels
from unlearning.compare.terms import THEIR_OWN, Terms
from unlearning.recipe import LOOKS_IN_A_ROW, is_forgotten
from unlearning.run import Run


@dataclass(frozen=True)
class UnlearnedModel:
    """A model that a method gives back, how it is decoded, the context in which it is asked, and what it cost."""

    model: nn.Module
    cost: Cost
    generate: Generate = ppo_generate
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    can_write: Callable[[Sequence[int], Sequence[int]], bool] | None = None  # of (prompt, response), where it vetoes
    notes: dict[str, Any] = field(default_factory=dict)
    budget: Budget | None = None  # of what trains


@dataclass(frozen=True)
class Inputs:
    """What every method is given.

    run        the original model with its data and settings
    floor      the chance floor (BLEU)
    keep       seed → the text to keep that DeMem draws with it
    retrained  the lab's models that never had to forget
    unlearn    DeMem itself: (preset, knob, value, folder, seed) → model and cost
    work       a folder of this point's own, for what can be resumed
    rate       learning rate of the baselines that keep text; None: the lab's
    secrets    the share of passages of which a secret may come out in a look (:func:`eval.secrets.bounds`)
    terms      what every method that trains gets alike
    """

    run: Run
    floor: float
    keep: Callable[[int], list[list[int]]]
    retrained: RetrainedModels
    unlearn: Callable[[str, str, float, Path, int], UnlearnedModel]
    work: Path
    rate: float | None = None
    secrets: Mapping[str, float] = field(default_factory=dict)
    terms: Terms = THEIR_OWN

    @property
    def model(self) -> nn.Module:
        return self.run.loaded.model

    @property
    def forget(self) -> list[Any]:
        return self.run.study.group("forget")


@dataclass(frozen=True)
class StopLog:
    """The results of the looks at the forget set, by step, in a file. A training that was killed goes on with them."""

    path: Path

    def until(self, steps: int) -> list[bool]:
        """The results up to a step, in order. Later ones belong to steps that a kill has undone."""
        known = read_json(self.path) if self.path.is_file() else {}
        return [found for step, found in known.items() if int(step) <= steps]

    def add(self, steps: int, is_gone: bool) -> list[bool]:
        """Add a result; all results up to this one."""
        known = read_json(self.path) if self.path.is_file() else {}
        earlier = {step: found for step, found in known.items() if int(step) < steps}
        write_json(self.path, {**earlier, str(steps): is_gone})
        return self.until(steps)


def stop_rule(inputs: Inputs, model: nn.Module, log: StopLog, bar: tqdm[Any]) -> Stop:
    """True once two looks in a row find the forget set forgotten. ``log`` keeps the looks, ``bar`` shows them.

    The rule is DeMem's own, except that outputs may be empty where the number of updates is the method's own: some
    baselines would never end otherwise.
    """
    options, tokenizer = inputs.run.options, inputs.run.loaded.tokenizer
    every, may_be_empty = inputs.terms.look_every(options), inputs.terms.updates is None

    def is_gone(steps: int) -> bool:
        bar.update(steps - bar.n)
        if steps % every:
            return False
        look = probe(model, tokenizer, inputs.forget)
        bar.set_postfix(extracted=look["forget/exact"], bleu=look["forget/bleu"])
        is_now = is_forgotten(
            look, options.target_exact, inputs.floor, secrets=inputs.secrets, may_be_empty=may_be_empty
        )
        found = log.add(steps, is_now)
        return len(found) >= LOOKS_IN_A_ROW and all(found[-LOOKS_IN_A_ROW:])

    return is_gone


def shown_on(bar: tqdm[Any]) -> Stop:
    """Never true: a training that does all of its updates. ``bar`` shows them."""

    def goes_on(steps: int) -> bool:
        bar.update(steps - bar.n)
        return False

    return goes_on


def look_tokens(inputs: Inputs) -> Tokens:
    """The cost of one look at the forget set: its prefixes and what follows them."""
    return Tokens(sum(len(p.prefix) + len(p.suffix) for p in inputs.forget))


def own_tokens(inputs: Inputs) -> Tokens:
    """The cost of sampling the model's own text to keep."""
    return Tokens(inputs.run.options.num_own * inputs.run.config.retain_tokens)
