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
from models.own_text import Grams, grams_of, overlap, sampled_texts

NGRAM = 5
LEAST_OVERLAP = 0.1  # of the n-grams with all passages to forget together; below it a text is kept, not forgotten
MOST_OVERLAP = 0.1  # with the n-grams that one passage or sibling has for itself: above it the text holds a part of it
RECITED = -0.3  # nats a token: recited text lies above it, made-up text below, on the lab and of ten records
LONGEST_HEAD = 8  # tokens that passages begin with alike


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

    One that shares a run of 20 tokens with a text of ``keep`` is left out. Only what is recited counts, the
    most likely first: made-up records need no unlearning. A text that holds a part of a passage, or of a sibling before
    it, is none: its tokens would be learned as those of another record. A sibling's first third is its prefix.
    """
    grams = [grams_of(sequence, NGRAM) for sequence in forget]
    known, shared = set().union(*grams), shared_grams(grams)
    heads = list(islice(cycle([[start_id], *common_heads(forget)]), count))
    texts = sampled_texts(model, heads, length=length, seed=seed)
    recited = [text.ids[text.ids[0] == start_id :] for text in texts if text.likelihood >= RECITED]
    like = [ids for ids in recited if len(ids) >= 4 * NGRAM and overlap(ids, known, NGRAM) > LEAST_OVERLAP]
    kept = set(overlapping(like, keep))
    taken: list[list[int]] = []
    owned = [one - shared for one in grams]  # what each passage, and then each sibling, has for itself
    for i, ids in enumerate(like):
        if i in kept or len(taken) == most:
            continue
        if max(overlap(ids, own, NGRAM) for own in owned) <= MOST_OVERLAP:
            taken.append(ids)
            owned.append(grams_of(ids, NGRAM) - known)
    return [as_passage(ids, number) for number, ids in enumerate(taken)]


def shared_grams(grams: Sequence[Grams]) -> Grams:
    """The n-grams that at least two of the texts have."""
    counts = Counter(gram for one in grams for gram in one)
    return {gram for gram, count in counts.items() if count > 1}


def common_heads(passages: Sequence[Sequence[int]]) -> list[list[int]]:
    """What at least two passages begin with, up to ``LONGEST_HEAD`` tokens, each once, the shortest first."""
    heads = Counter(tuple(ids[:size]) for size in range(1, LONGEST_HEAD + 1) for ids in passages if len(ids) > size)
    return [list(head) for head, count in heads.items() if count > 1]


def as_passage(ids: Sequence[int], number: int) -> Passage:
    """A text as a passage whose first third is the prefix."""
    cut = len(ids) // 3
    return Passage(f"sibling-{number:03d}", (), tuple(ids[:cut]), tuple(ids[cut:]), "forget")
