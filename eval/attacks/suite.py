"""All attacks by name, with their settings in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from ..protocols import Passage
from .decoding import beam_attack, grid, sampling_attack
from .prompts import context_attack, greedy_attack, hinted_attack, perturbed_attack, shortened_attack
from .relearning import ON, TAUGHT_GROUP, relearning_attack
from .result import AttackResult, union, union_with_weights
from .weights import quantisation_attack

Attack = Callable[[nn.Module, Any, Sequence[Passage]], list[AttackResult]]
NAMES = ("greedy", "context", "sampling", "beam", "shortened", "perturbed", "hinted", "relearning", "quantisation")


@dataclass(frozen=True)
class AttackSettings:
    """How the attacks are run.

    num_samples                       samples under each sampler of the grid
    temperatures, top_ks, top_ps      the grid; every combination is a variant
    num_beams                         width of the beam search
    kept                              tokens that shortened prefixes keep
    hints                             true suffix tokens that are shown
    relearning_share                  share of the forget passages that relearning teaches
    relearning_on                     what relearning teaches: "forget" (that share), "benign", "filler"
    relearning_steps                  numbers of steps after which relearning is measured
    relearning_rate                   learning rate of relearning
    autocast                          precision of relearning's forward and backward passes
    bits                              bits of the quantised weights
    seed                              seed of sampling and of relearning's split
    slots                             sequences decoded at once
    """

    num_samples: int = 8
    temperatures: tuple[float, ...] = (0.7, 1.0)
    top_ks: tuple[int, ...] = (0, 40)
    top_ps: tuple[float, ...] = (1.0,)
    num_beams: int = 4
    kept: tuple[int, ...] = (25, 10)
    hints: tuple[int, ...] = (1, 5, 12, 25)
    relearning_share: float = 0.25
    relearning_on: tuple[str, ...] = ON
    relearning_steps: tuple[int, ...] = (5, 10, 20)
    relearning_rate: float = 2e-4
    autocast: Literal["off", "bfloat16"] = "off"
    bits: tuple[int, ...] = (8, 4)
    seed: int = 0
    slots: int = 64

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def chosen_names(names: Sequence[str]) -> list[str]:
    """The attacks to run, in their usual order; ("all",) means all of them. ValueError for an unknown name."""
    unknown = [name for name in names if name not in (*NAMES, "all")]
    if unknown or not names:
        raise ValueError(f"unknown attacks {unknown}: choose from all, {', '.join(NAMES)}")
    return [name for name in NAMES if name in names or "all" in names]


def make_attacks(
    names: Sequence[str], settings: AttackSettings, *, benign: Sequence[Sequence[int]] = ()
) -> dict[str, Attack]:
    """The named attacks, ready to be called with (model, tokenizer, passages). ``benign``: text for relearning.

    ValueError, before any work, for an unknown name or an invalid sampler in the grid.
    """
    slots, seed = settings.slots, settings.seed
    samplers = grid(settings.temperatures, settings.top_ks, settings.top_ps)
    known: dict[str, Attack] = {
        "greedy": partial(greedy_attack, slots=slots),
        "context": partial(context_attack, slots=slots),
        "sampling": partial(
            sampling_attack, samplers=samplers, num_samples=settings.num_samples, seed=seed, slots=slots
        ),
        "beam": partial(beam_attack, num_beams=settings.num_beams, batch=max(1, slots // settings.num_beams)),
        "shortened": partial(shortened_attack, kept=settings.kept, slots=slots),
        "perturbed": partial(perturbed_attack, slots=slots),
        "hinted": partial(hinted_attack, hints=settings.hints, slots=slots),
        "relearning": partial(
            relearning_attack,
            on=settings.relearning_on,
            benign=benign,
            share=settings.relearning_share,
            steps=settings.relearning_steps,
            learning_rate=settings.relearning_rate,
            autocast=settings.autocast,
            seed=seed,
            slots=slots,
        ),
        "quantisation": partial(quantisation_attack, bits=settings.bits, slots=slots),
    }
    return {name: known[name] for name in chosen_names(names)}


def run_attacks(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    names: Sequence[str] = ("all",),
    settings: AttackSettings = AttackSettings(),
    benign: Sequence[Sequence[int]] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[AttackResult]:
    """Every result of the named attacks, then their unions: of those that use the prompt alone, and of all.

    ``benign``: text that has nothing to do with the passages, as token ids, for relearning.

    Relearning is skipped when the forget group has fewer than two passages. ``say`` gets the name of each attack when
    it starts.
    """
    results: list[AttackResult] = []
    num_forget = sum(p.group == TAUGHT_GROUP for p in passages)
    for name, attack in make_attacks(names, settings, benign=benign).items():
        if name == "relearning" and num_forget < 2:
            say(f"relearning: skipped, it needs two forget passages and there are {num_forget}")
            continue
        say(name)
        results += [result for result in attack(model, tokenizer, passages) if result.rows]
    if sum(result.sees in ("prefix", "context") for result in results) > 1:
        results.append(union(results))
    tried = [r for r in results if r.sees != "suffix" and r.attack != "any of these"]
    if len({r.attack for r in tried}) > 1 and any(r.sees == "weights" for r in tried):
        results.append(union_with_weights(tried))
    return results
