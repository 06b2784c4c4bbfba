"""The preset ``deep``: what its trainer is made of. unlearning/options.py holds its settings."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from data.held_back import KEEP, SHOWN
from data.study import Study
from data.types import Passage
from eval.results import note_siblings
from models.own_text import sampled_texts, start_token
from ppo.lm.backbone import context_length, vocabulary_size
from ppo.types import RewardFn
from unlearning.deep.chance import ChanceLevels, chance_levels, private_bounds
from unlearning.deep.forced import (
    WINDOWS,
    ForcedStates,
    bounded_reference,
    forced_rows,
    no_score,
    state_advantages,
    supervised_loss,
)  # fmt: skip
from unlearning.deep.siblings import RECITED, siblings
from unlearning.run import Run, say

OF_SIBLING = (2, 0, 1)  # windows: what a sibling teaches of the form is soon learned, and steps are for the passages
OWN_TEXTS = 64  # that tell the NLL of a stranger's passage where there is none
SIBLING_SHARE = 4  # a sibling for every four rows of passages, at most


@dataclass(frozen=True)
class Parts:
    """The rows, the reward and the seams of a :class:`ppo.Trainer`."""

    rows: list[dict[str, Any]]
    reward: RewardFn
    seams: dict[str, Any]


def usual_nll(model: nn.Module, start_id: int | None, *, length: int, seed: int) -> float | None:
    """The NLL of what the model makes up by itself, nats per token: about that of a text that it never saw.

    Of a calibrated model the two are alike. What it recites does not count. None where it has no start token.
    """
    if start_id is None:
        return None
    texts = sampled_texts(model, [[start_id]] * OWN_TEXTS, length=length, seed=seed)
    made_up = [text.likelihood for text in texts if text.likelihood < RECITED]
    return -sum(made_up) / len(made_up) if made_up else None


def levels_of(
    study: Study, original: nn.Module, tokenizer: Any, *, seed: int, more: Sequence[Passage] = ()
) -> ChanceLevels:
    """The chance levels of the passages to forget and of ``more``, from the model before unlearning.

    Every other never-trained passage sets their mean. The evaluation reports these and the others together.
    """
    never, forget = study.group("never")[::2], study.group("forget")
    named = [*forget, *more] if study.secrets_by != "estimated" else [replace(p, secrets=()) for p in [*forget, *more]]
    decode, length = tokenizer.decode, max(len(p.ids) for p in forget)
    found = chance_levels(
        original,
        [p.ids for p in forget],
        vocab_size=vocabulary_size(original),
        others=study.retain,
        never=[p.ids for p in never],
        more=[p.ids for p in more],
        most=private_bounds(named, decode, has_estimates=False),
        most_in_form=private_bounds([*forget, *more], decode, has_estimates=True),
        usual_nll=lambda: usual_nll(original, start_token(tokenizer), length=length, seed=seed),
        seed=seed,
    )
    by = f", to the power {found.power:.2f} as of {len(never)} never-trained passages" if never else ""
    say(f"chance levels: {found.nll:.2f} nats per token{by}; other passages know {found.shared:.0%} of the contexts")
    return found


def deep_parts(run: Run) -> Parts:
    """The parts of a run with the preset ``deep``, from the model before unlearning."""
    forget, more = run.study.group("forget"), run.processes.first(lambda: siblings_of(run))
    found = levels_of(run.study, run.loaded.model, run.loaded.tokenizer, seed=run.config.seed, more=more)
    original = copy.deepcopy(run.loaded.model).requires_grad_(False)
    by_ppo = run.options.preset == "deep"
    heat = run.options.heat if by_ppo else 1.0
    sampler = ForcedStates(original, actions=run.options.actions, heat=heat, of_reference=not by_ppo)
    levels, own, seed, is_suffix = found.levels, run.options.own_rows, run.config.seed, run.options.windows == 1
    rows = forced_rows(forget, levels[: len(forget)], own=own, seed=seed, is_suffix=is_suffix)
    rows += forced_rows(
        more, levels[len(forget) :], windows=OF_SIBLING, own=min(1, own), seed=seed, is_suffix=is_suffix
    )
    seams = {"sampler": sampler, "reference": bounded_reference, "advantage": state_advantages}
    return Parts(rows, no_score, seams if by_ppo else seams | {"policy_loss": supervised_loss})


def siblings_of(run: Run) -> list[Passage]:
    """The run's siblings of the passages to forget (:mod:`unlearning.deep.siblings`)."""
    tokenizer, forget = run.loaded.tokenizer, [p.ids for p in run.study.group("forget")]
    keep = [*(p.ids for name in (KEEP, SHOWN) for p in run.study.group(name)), *run.study.retain]
    start = start_token(tokenizer)
    if not run.options.siblings or start is None:
        return []
    longest, context = max(map(len, forget)), context_length(run.loaded.model)
    length = longest if context is None else min(longest, context - 1)
    most = min(run.options.siblings, len(forget) * (WINDOWS + run.options.own_rows) // SIBLING_SHARE)
    found = siblings(
        run.loaded.model, start, forget, keep=keep, most=most, count=run.options.num_own or 256,
        length=length, seed=run.config.seed,
    )  # fmt: skip
    say(f"siblings: {len(found)} texts of the same form that the model writes by itself are unlearned as well")
    note_siblings(run.out, [run.loaded.decode(p.ids) for p in found])
    return found
