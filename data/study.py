"""Everything an unlearning experiment needs of its data: passages in groups, text to keep, text to test on.

The lab brings all of it. Other passages are parted into *forget* and *forget_holdout* (and *never*, on request) so that
no 20-gram stands in two of them, unless they name their groups themselves; where no text to keep is given, Python's
documentation serves. This module knows token ids and files, nothing about models or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.lab import lab_holdout, lab_retain
from data.passages import load_passages
from data.retain import load_retain
from data.splits import leak_free_split, ngram_groups, split_holdout
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
    num_forget: int | None = None,
    num_holdout: int | None = None,
    num_never: int | None = None,
    seed: int = 0,
) -> Study:
    """The data of an experiment, from ``data`` ("lab", a folder of challenge .npy files, a .csv or .jsonl file).

    ``retain``: text or JSONL files; () is Python's documentation. ``num_forget``, ``num_holdout`` and ``num_never``
    passages (None: 32, 32, 0) are drawn, by ``seed``, where the data names no groups; the first two do not depend on
    the third. Raises ValueError that names file, place and remedy.
    """
    if retain:
        chunks = load_retain(retain, tokenizer, GENERAL_TOKENS)
        kept, held = split_holdout(chunks, holdout_share=HOLDOUT_SHARE, seed=seed)
    else:
        kept, held = lab_retain(tokenizer, GENERAL_TOKENS), lab_holdout(tokenizer, GENERAL_TOKENS)
    rows = load_passages(data, tokenizer, vocab_size, split=split)
    unsaid = [p.id for p in rows if not p.group]
    if unsaid and len(unsaid) < len(rows):
        raise ValueError(f"{data}: passage {unsaid[0]} names no group while others do; name it for all or for none")
    if not unsaid:
        if (num_forget, num_holdout, num_never) != (None, None, None):
            raise ValueError(f"{data} names the group of every passage: --num-forget and its like do not apply")
        return Study(rows, kept, held)
    passages = draw_groups(
        rows,
        num_forget=32 if num_forget is None else num_forget,
        num_holdout=32 if num_holdout is None else num_holdout,
        num_never=num_never or 0,
        seed=seed,
    )
    return Study(passages, kept, held, len(rows) - len(passages))


def draw_groups(
    rows: Sequence[Passage], *, num_forget: int, num_holdout: int, num_never: int, seed: int
) -> list[Passage]:
    """Passages drawn into the groups forget, forget_holdout and never; no 20-gram stands in two of them.

    The never group is drawn last, from rows that share no 20-gram with the others. ValueError where rows are short.
    """
    groups = leak_free_split(rows, {"forget": num_forget, "forget_holdout": num_holdout}, seed=seed)
    if num_never:
        taken = {p.id for members in groups.values() for p in members}
        labels = ngram_groups([p.ids for p in rows])
        used = {label for p, label in zip(rows, labels, strict=True) if p.id in taken}
        rest = [p for p, label in zip(rows, labels, strict=True) if label not in used]
        groups |= leak_free_split(rest, {"never": num_never}, seed=seed)
    return [replace(p, group=name) for name, members in groups.items() for p in members]


def windows(passage: Passage, count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, what follows) at up to ``count`` places of a passage: its own prefix and suffix, then the same half a
    suffix earlier, and so on.

    ``pre_prefix`` 4 tokens, ``prefix`` 4, ``suffix`` 4: (4 … 7 → 8 … 11), (2 … 5 → 6 … 9), (0 … 3 → 4 … 7). Those
    that would begin before the passage are left out.
    """
    step = max(1, len(passage.suffix) // 2)
    first = len(passage.pre_prefix)
    starts = [first - step * k for k in range(count) if first >= step * k]
    middle, size = len(passage.prefix), len(passage.prefix) + len(passage.suffix)
    return [(passage.ids[start : start + middle], passage.ids[start + middle : start + size]) for start in starts]


def check_fits(study: Study, context: int | None, response_length: int) -> None:
    """Raise ValueError, before any work, for a passage or a response that does not fit into ``context`` tokens."""
    longest = max(len(p.suffix) for p in study.passages)  # every prefix is continued as far as the longest suffix
    for p in study.passages if context is not None else []:
        needed = max(len(p.ids), len(p.prefix) + max(response_length, longest))
        if needed > context:
            raise ValueError(
                f"passage {p.id} needs {needed} tokens (its own {len(p.ids)}; prefix {len(p.prefix)} + response_length "
                f"{response_length}), which exceeds the model's context of {context}: shorten it or --response-length"
            )
