"""What a training was given and what it used: updates, tokens to forget and to keep, and whether it could end early.

A comparison stores these numbers with every point of a method that trains. This module counts; it trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.baselines.training import Pair, Training
from unlearning.compare.terms import ForgetOn, updates_a_step
from unlearning.deep.forced import WINDOWS
from unlearning.recipe import rows_to_forget
from unlearning.run import Run


@dataclass(frozen=True)
class Budget:
    """The budget of a training.

    updates, most_updates   optimiser updates that were done, and that were allowed
    update_rows    rows of the forget set in an update
    rows           different rows that there were, without those of siblings
    own_rows       how many of them the policy continues itself (preset deep)
    siblings       how many siblings it forgets at most, beside the passages (preset deep)
    forget_on      what the rows held of a passage
    forget_tokens  tokens under the loss to forget, as often as they came up: true ones, or the policy's own; in rows of
                   different lengths, of the mean length
    keep_tokens    tokens under the loss on text to keep, as many as its pieces have on average
    early_end      whether a look at the forget set could end the training before ``most_updates``
    look_every     updates between two looks; 0: nobody looked
    """

    updates: int
    most_updates: int
    update_rows: int
    rows: int
    forget_on: ForgetOn
    forget_tokens: float
    keep_tokens: float
    early_end: bool
    look_every: int
    own_rows: int = 0
    siblings: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def mean_piece(texts: Sequence[Sequence[int]], length: int) -> float:
    """Predicted tokens of a piece of text to keep, on average, as :class:`ppo.retain.RetainTexts` cuts them."""
    cut = [len(text[start : start + length]) for text in texts for start in range(0, len(text), length)]
    pieces = [size - 1 for size in cut if size >= 2]
    return sum(pieces) / len(pieces) if pieces else 0.0


def ppo_budget(run: Run, log: Sequence[Mapping[str, float]], kept: Sequence[Sequence[int]]) -> Budget:
    """The budget of a DeMem training. ``log``: rows of metrics.jsonl. ``kept``: the text that it keeps; [] for none."""
    options, config, forget = run.options, run.config, run.study.group("forget")
    each = updates_a_step(config.to_dict())
    updates = round(sum(row["update/minibatches"] for row in log))
    is_looked_at = options.preset != "paper-as-run"  # the notebook never looks
    rows = len(forget) * (WINDOWS + options.own_rows) if options.is_deep else len(rows_to_forget(run))
    return Budget(
        updates=updates,
        most_updates=each * options.most_steps,
        update_rows=config.minibatch,
        rows=rows,
        forget_on="suffix" if options.windows == 1 or (options.is_paper and options.windows is None) else "passage",
        forget_tokens=sum(row["response/length_mean"] * row["update/minibatches"] for row in log) * config.minibatch,
        keep_tokens=mean_piece(kept, config.retain_tokens) * config.retain_sequences * updates,
        early_end=options.ends_early and is_looked_at,
        look_every=each * options.check_every if is_looked_at else 0,
        own_rows=len(forget) * options.own_rows if options.is_deep else 0,
        siblings=options.siblings if options.is_deep else 0,
    )


def rival_budget(
    pairs: Sequence[Pair],
    training: Training,
    *,
    num_updates: int,
    most_updates: int,
    kept: Sequence[Sequence[int]],
    forget_on: ForgetOn,
    early_end: bool,
    look_every: int,
) -> Budget:
    """The budget of a rival's training. ``pairs``: its rows. ``kept``: the text that it keeps; [] for none."""
    rows = len(pairs) if training.batch is None else min(training.batch, len(pairs))
    piece = mean_piece(kept, training.retain_tokens) if training.retain_weight else 0.0
    return Budget(
        updates=num_updates,
        most_updates=most_updates,
        update_rows=rows,
        rows=len(pairs),
        forget_on=forget_on,
        forget_tokens=sum(len(tokens) for _, tokens in pairs) / len(pairs) * rows * num_updates,
        keep_tokens=piece * training.retain_sequences * num_updates,
        early_end=early_end,
        look_every=look_every,
    )
