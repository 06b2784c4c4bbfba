"""What a comparison gives every method that trains alike: its updates, the rows that it forgets, and its looks.

A row is a context and the tokens to forget behind it. Rivals take their rows from here. DeMem makes its own of the same
windows: its free rollouts need a prompt as long as a prefix, so that they never forget the first tokens of a passage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ppo
from data.types import Passage
from unlearning.deep.forced import forced_rows
from unlearning.options import Options

ForgetOn = Literal["passage", "suffix"]
ROWS = 16  # of the forget set in an update of the preset deep
UPDATES_A_STEP = 4  # of the presets demem and deep; --check-every counts such steps


@dataclass(frozen=True)
class Terms:
    """The terms on which methods are compared.

    updates    optimiser updates of every training; None: each method's own number, in its own batches
    rows       rows of the forget set in each of them
    forget_on  "passage": all of a passage, from several places on; "suffix": the suffix behind its prefix
    """

    updates: int | None = None
    rows: int = ROWS
    forget_on: ForgetOn = "passage"

    def rows_of(self, passages: Sequence[Passage], *, seed: int) -> list[Passage]:
        """What a rival forgets, as passages with a prefix and a suffix: the windows of the preset deep, or themselves.

        A window keeps the id of its passage and ends where it ends.
        """
        if self.forget_on == "suffix":
            return list(passages)
        windows = forced_rows(passages, [[1.0] * len(p.ids) for p in passages], seed=seed)
        found = {p.id: p for p in passages}
        return [
            replace(found[w["id"]], pre_prefix=(), prefix=tuple(w["prompt"]), suffix=tuple(w["text_ids"]))
            for w in windows
        ]

    def look_every(self, options: Options, updates_a_step: int = 1) -> int:
        """Steps between two looks at the forget set. With ``updates``, all methods look after as many updates.

        A method with more updates in a step looks after each step.
        """
        if self.updates is None:
            return options.check_every
        return max(1, options.check_every * UPDATES_A_STEP // updates_a_step)


THEIR_OWN = Terms()  # updates and batches of each method, all of a passage


def updates_a_step(settings: Mapping[str, Any]) -> int:
    """The optimiser updates of a PPO step with these settings of :class:`ppo.Config`."""
    config = ppo.Config.from_dict(dict(settings))
    return config.epochs * config.sequences_per_step // config.minibatch


def on_terms(
    terms: Terms, options: Options, settings: Mapping[str, Any], *, places: int
) -> tuple[Options, dict[str, Any]]:
    """The options and settings of DeMem on these terms. What the paper sets stays the paper's: its minibatch, its rows.

    ``places``: the number of windows of a passage, for free rollouts. ValueError where the updates are no whole number
    of steps, or a step would be no whole number of prompts.
    """
    found = dict(settings)
    if terms.forget_on == "suffix":
        options = replace(options, windows=1)
    elif not options.is_deep and not options.is_paper:
        options = replace(options, windows=places)
    if terms.updates is None:
        return options, found
    if not options.is_paper:
        config = ppo.Config.from_dict(found)
        sequences = config.sequences_per_step // config.minibatch * terms.rows
        if sequences % config.samples_per_prompt:
            raise ValueError(
                f"--update-rows {terms.rows} gives a step of --preset {options.preset} {sequences} responses, which is "
                f"no multiple of its {config.samples_per_prompt} for each prompt"
            )
        found |= {"minibatch": terms.rows, "prompts_per_step": sequences // config.samples_per_prompt}
    each = updates_a_step(found)
    if terms.updates % each:
        raise ValueError(
            f"--updates {terms.updates} must be a multiple of {each}, the updates in a step of --preset "
            f"{options.preset}: {max(1, terms.updates // each) * each} or {(terms.updates // each + 1) * each}"
        )
    looks = terms.look_every(options, each)
    return replace(options, steps=terms.updates // each, check_every=looks), found
