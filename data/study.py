"""Everything an unlearning experiment needs of its data: passages in groups, text to keep, text to test on.

The lab brings all of it. Other passages are parted into *forget* and *forget_holdout* so that no 20-gram stands in
both, unless they name their groups themselves; where no text to keep is given, Python's documentation serves. This
module knows token ids and files, nothing about models or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.lab import lab_holdout, lab_retain
from data.passages import load_passages
from data.retain import load_retain
from data.splits import leak_free_split, split_holdout
from data.types import Passage

GENERAL_TOKENS = 128  # length of a retain or holdout sequence
HOLDOUT_SHARE = 0.2  # of the text to keep, where the caller brings it


@dataclass(frozen=True)
class Study:
    """``passages`` of all groups; ``retain`` and ``holdout``: general text as token ids, disjoint.

    ``num_left_out``: passages of the data that are in no group, since fewer were asked for.
    """

    passages: list[Passage]
    retain: list[list[int]]
    holdout: list[list[int]]
    num_left_out: int = 0

    def group(self, name: str) -> list[Passage]:
        """The passages of one group, in order."""
        return [p for p in self.passages if p.group == name]


def load_study(
    data: str,
    tokenizer: Any,
    vocab_size: int,
    *,
    split: str | None = None,
    retain: Sequence[str] = (),
    num_forget: int = 32,
    num_holdout: int = 32,
    seed: int = 0,
) -> Study:
    """The data of an experiment, from ``data`` ("lab", a folder of challenge .npy files, a .csv or .jsonl file).

    ``retain``: text or JSONL files; () is Python's documentation. ``num_forget`` and ``num_holdout`` passages are
    drawn, by ``seed``, where the data names no groups. Raises ValueError that names file, place and remedy.
    """
    if retain:
        chunks = load_retain(retain, tokenizer, GENERAL_TOKENS)
        kept, held = split_holdout(chunks, holdout_share=HOLDOUT_SHARE, seed=seed)
    else:
        kept, held = lab_retain(tokenizer, GENERAL_TOKENS), lab_holdout(tokenizer, GENERAL_TOKENS)
    passages = load_passages(data, tokenizer, vocab_size, split=split)
    num_rows, num_left_out = len(passages), 0
    if {p.group for p in passages} == {"forget"}:
        groups = leak_free_split(passages, {"forget": num_forget, "forget_holdout": num_holdout}, seed=seed)
        passages = [replace(p, group=name) for name, members in groups.items() for p in members]
        num_left_out = num_rows - len(passages)
    return Study(passages, kept, held, num_left_out)
