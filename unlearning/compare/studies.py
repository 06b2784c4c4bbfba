"""The passages of a comparison: how many are forgotten, and which of them are tuned on and so not reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.splits import ngram_groups
from data.study import Study
from unlearning.compare.settings import Comparison

TUNED_SHARE = 0.25  # of every group of passages, and of the held-out text


def sizes_of(comparison: Comparison, study: Study) -> list[int]:
    """The numbers of forget records. ValueError for more than there are memorised ones to forget."""
    most = len(study.group("forget")) + len(study.group("forget_holdout"))
    sizes = [int(size) for size in comparison.sizes.split(",")] if comparison.sizes else [len(study.group("forget"))]
    for size in sizes:
        if size > most:
            raise ValueError(f"--sizes {size} is more than the {most} passages in the groups forget and forget_holdout")
    return sizes


def resized(study: Study, size: int, *, most_holdout: int | None = None) -> Study:
    """The study with the first ``size`` of the forget and forget-holdout passages to be forgotten, the others held out.

    ``most_holdout``: only so many of the passages that are held out stay, the first ones; None: all.
    """
    pool = iter(range(len(study.passages)))
    passages = []
    for p in study.passages:
        if p.group in ("forget", "forget_holdout"):
            p = replace(p, group="forget" if next(pool) < size else "forget_holdout")
        passages.append(p)
    held_out = [p for p in passages if p.group == "forget_holdout"]
    left_out = {p.id for p in held_out[len(held_out) if most_holdout is None else most_holdout :]}
    return replace(study, passages=[p for p in passages if p.id not in left_out])


def parted(study: Study, *, seed: int) -> tuple[Study, Study]:
    """(tuned on, reported): a quarter of every group of passages and of the held-out text, by ``seed``, and the rest.

    No two texts of the parts share a run of 20 tokens. A group that only the reported part should have, forget_holdout,
    is in it alone. ValueError for a group of which nothing can be tuned on, or nothing would be reported.
    """
    names = [p.group for p in study.passages] + ["the held-out text"] * len(study.holdout)
    is_tuned = drawn([*(list(p.ids) for p in study.passages), *study.holdout], names, seed=seed)
    for name in dict.fromkeys(name for name in names if name != "forget_holdout"):
        chosen = [tuned for tuned, other in zip(is_tuned, names, strict=True) if other == name]
        if not any(chosen) or all(chosen):
            raise ValueError(
                f"--knobs tuned cannot take a part of the {len(chosen)} texts of {name}: give more of them, or texts "
                "that do not share runs of 20 tokens"
            )
    of_passages, of_holdout = is_tuned[: len(study.passages)], is_tuned[len(study.passages) :]
    parts = []
    for wanted in (True, False):
        passages = [p for p, tuned in zip(study.passages, of_passages, strict=True) if tuned == wanted]
        holdout = [ids for ids, tuned in zip(study.holdout, of_holdout, strict=True) if tuned == wanted]
        parts.append(replace(study, passages=passages, holdout=holdout))
    return parts[0], parts[1]


def drawn(texts: Sequence[Sequence[int]], names: Sequence[str], *, seed: int) -> list[bool]:
    """Which texts are tuned on: of each name about ``TUNED_SHARE``, at least one, but no forget_holdout.

    Texts that share a run of 20 tokens are taken together or not at all, in random order.
    """
    room = {name: max(1, round(TUNED_SHARE * names.count(name))) for name in dict.fromkeys(names)}
    room["forget_holdout"] = 0
    labels = ngram_groups(texts)
    members: dict[int, list[str]] = {}
    for label, name in zip(labels.tolist(), names, strict=True):
        members.setdefault(label, []).append(name)
    taken = set()
    for label in np.random.default_rng(seed).permutation(len(members)).tolist():
        if all(room[name] >= members[label].count(name) for name in members[label]):
            taken.add(label)
            for name in members[label]:
                room[name] -= 1
    return [label in taken for label in labels.tolist()]
