"""Which records to keep are measured: half of them, and no text that training keeps may hold any of those.

A record that stands in the text to keep is trained on. That it survives says little about the others. So every other
record is *held back*: it stays in the group "keep", and :func:`without_held_back` takes it out of the text to keep.
The rest is the group "keep_shown", whose texts may stand there; it is reported beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data.splits import ngram_groups, overlapping
from data.types import Passage

KEEP, SHOWN = "keep", "keep_shown"


def hold_back(passages: Sequence[Passage]) -> list[Passage]:
    """The passages, those of the group "keep" in two halves: held back ("keep") and "keep_shown".

    Passages that share a run of 20 tokens go to one half. Of others the first, the third, … are held back.
    """
    kept = [p for p in passages if p.group == KEEP]
    labels = dict(zip((p.id for p in kept), ngram_groups([p.ids for p in kept]).tolist(), strict=True))
    return [replace(p, group=SHOWN) if labels.get(p.id, 0) % 2 else p for p in passages]


def without_held_back(texts: Sequence[list[int]], passages: Sequence[Passage]) -> list[list[int]]:
    """The texts, as token ids, that share no run of 20 tokens with a passage that is held back."""
    held = [p.ids for p in passages if p.group == KEEP]
    found = set(overlapping(texts, held)) if held else set()
    return [text for i, text in enumerate(texts) if i not in found]
