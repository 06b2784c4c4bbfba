"""Texts like the passages to forget that the model recites by itself: its other memories of that form.

Whoever names ten records of a file to forget seldom means that the eleventh may stay. The model shows what else of that
form it has memorised when it writes from its start token, and from the words that several of the passages begin with.
No other data is needed, and no held-out passage is read. What is to be kept is no sibling. This module knows token ids
and a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice

from torch import nn

from data.splits import overlapping
from data.types import Passage
from models.own_text import grams_of, overlap, sampled_texts

NGRAM = 5
LEAST_OVERLAP = 0.1  # of the n-grams with all passages to forget together; below it a text is kept, not forgotten
LONGEST_HEAD = 8  # tokens that passages begin with alike
MOST_OVERLAP = 0.5  # with a single passage or sibling: above it the text is that one, which is unlearned anyway


def siblings(
    model: nn.Module,
    start_id: int,
    forget: Sequence[Sequence[int]],
    *,
    keep: Sequence[Sequence[int]] = (),
    most: int,
    count: int,
    length: int,
    seed: int,
) -> list[Passage]:
    """At most ``most`` texts like the passages to forget, and none of them, from ``count`` texts of ``length`` tokens.

    One that shares a run of 20 tokens with a text of ``keep`` is left out. The most likely texts come first: what is
    recited is likelier than what is made up. A text that is half like one before it is left out. A sibling's first
    third is its prefix.
    """
    grams = [grams_of(sequence, NGRAM) for sequence in forget]
    known = set().union(*grams)
    found = []
    heads = list(islice(cycle([[start_id], *common_heads(forget)]), count))
    texts = sampled_texts(model, heads, length=length, seed=seed)
    for ids in (ids[1:] if ids[0] == start_id else ids for ids in texts):
        is_like = len(ids) >= 4 * NGRAM and overlap(ids, known, NGRAM) > LEAST_OVERLAP
        if is_like and max(overlap(ids, one, NGRAM) for one in grams) <= MOST_OVERLAP:
            found.append(ids)
    kept = set(overlapping(found, keep))
    found = [ids for i, ids in enumerate(found) if i not in kept]
    taken: list[list[int]] = []
    for ids in found:
        if len(taken) < most and all(overlap(ids, grams_of(one, NGRAM), NGRAM) <= MOST_OVERLAP for one in taken):
            taken.append(ids)
    return [as_passage(ids, number) for number, ids in enumerate(taken)]


def common_heads(passages: Sequence[Sequence[int]]) -> list[list[int]]:
    """What at least two passages begin with, up to ``LONGEST_HEAD`` tokens, each once, the shortest first."""
    heads = Counter(tuple(ids[:size]) for size in range(1, LONGEST_HEAD + 1) for ids in passages if len(ids) > size)
    return [list(head) for head, count in heads.items() if count > 1]


def as_passage(ids: Sequence[int], number: int) -> Passage:
    """A text as a passage whose first third is the prefix."""
    cut = len(ids) // 3
    return Passage(f"sibling-{number:03d}", (), tuple(ids[:cut]), tuple(ids[cut:]), "forget")
