"""Does the model still write words, in an order that makes sense? Broken text forgets best, and looks varied.

Three numbers of an output see what length, loops and variety do not:

    non_words      share of its words that stand nowhere in the texts at hand: halves glued together, bits of words
    output_nll     its NLL under the original model: tokens drawn at random
    output_order   how much its NLL rises when its words are shuffled: nothing, where they are in no order already

None has a target of its own; the target is the original's level on never-trained passages: what its outputs there are
like, and the NLL and the order of the true suffixes. :func:`writing` joins them with empty, looping, garbled and
repetitive text into one score a group. This module knows token ids, texts and numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import regex
from torch import nn

from rewards.scripts import tokenizer_of

from .fluency import output_nll
from .intervals import sums_interval
from .outputs import Continuation
from .protocols import Decoder, Passage
from .settings import Settings

Record = dict[str, Any]
Summary = Mapping[str, float]
LEVEL_GROUP = "never"
"""The passages on which the original shows its level."""
MIN_WORDS = 4
"""Fewer words have no order that could be tested."""
NATS_ALLOWED, NATS_BROKEN = 2.0, 4.0
"""Of one output above the level, nats per token: up to the first its share is whole, from the second on it is 0."""
ORDER_SHARE = 0.5
"""Of the level's order: so much of it counts as a whole order of one output."""
_COLUMNS = ("empty", "loop", "garbled", "distinct_2", "distinct_2_truth")  # of a record, which the score is made of
_WORD = regex.compile(r"[\p{L}\p{M}\u200c\u200d]+(?:['\u2019][\p{L}\p{M}]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in order, without case: runs of letters, with apostrophes inside. Digits are no words."""
    return [word.casefold() for word in _WORD.findall(text)]


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """All words of some texts."""
    return frozenset(word for text in texts for word in words_of(text))


def non_word_share(text: str, known: Collection[str]) -> float | None:
    """Share of a text's words that are not ``known``; None where there is none to test.

    The first word and the last are left out: an output may begin and end within a word.
    """
    inner = words_of(text)[1:-1]
    return sum(word not in known for word in inner) / len(inner) if inner else None


def shuffled(ids: Sequence[int], tokenizer: Decoder, *, seed: int = 0) -> list[int] | None:
    """The same tokens with their words in another order, or None below ``MIN_WORDS`` words.

    A word is a token whose text begins with white space, and those after it that do not. The first word stays where it
    is: it may be the end of one. Text with hardly any spaces is shuffled token by token.
    """
    words: list[list[int]] = []
    lead = len(tokenizer.decode(ids[:1]))  # some tokenizers drop the space of a first token
    for token in ids:
        text = tokenizer.decode([ids[0], token])[lead:]
        if not words or text[:1].isspace():
            words.append([])
        words[-1].append(token)
    if 8 * len(words) < len(ids):
        words = [[token] for token in ids]
    if len(words) < MIN_WORDS:
        return None
    rest = words[1:]
    random.Random(seed).shuffle(rest)
    return [token for word in [words[0], *rest] for token in word]


def word_metrics(texts: Sequence[str], known_texts: Iterable[str]) -> list[Record]:
    """``non_words`` of each text. None for all where the known texts put no spaces between words."""
    known_texts = list(known_texts)
    known = vocabulary(known_texts) if tokenizer_of(known_texts) == "13a" else None
    return [{"non_words": None if known is None else non_word_share(text, known)} for text in texts]


def order_metrics(
    original: nn.Module,
    tokenizer: Decoder,
    passages: Sequence[Passage],
    written: Sequence[Continuation],
    settings: Settings,
) -> list[Record]:
    """``output_nll``, ``output_order`` and ``truth_order`` of each passage, under the original and given its prefix.

    The last one is the level, so never-trained passages alone have it; the others have None.
    """

    def measured(chosen: Sequence[Passage], texts: Sequence[Sequence[int]]) -> list[tuple[float | None, float | None]]:
        """(NLL, how much it rises when the words are shuffled) of each text."""
        mixed = [shuffled(ids, tokenizer, seed=settings.seed) or [] for ids in texts]
        prefixes = [p.prefix for p in chosen] * 2
        nlls = output_nll(original, prefixes, [*texts, *mixed], batch_tokens=settings.batch_tokens)
        pairs = zip(nlls[: len(texts)], nlls[len(texts) :], strict=True)
        return [(nll, None if nll is None or other is None else other - nll) for nll, other in pairs]

    level = [p for p in passages if p.group == LEVEL_GROUP]
    truths = iter(measured(level, [list(p.suffix) for p in level]))
    return [
        {
            "output_nll": nll,
            "output_order": order,
            "truth_order": next(truths)[1] if passage.group == LEVEL_GROUP else None,
        }
        for passage, (nll, order) in zip(passages, measured(passages, [w.ids for w in written]), strict=True)
    ]


def writing_parts(rows: Sequence[Record], summary: Summary, original: Summary, group: str) -> dict[str, float] | None:
    """The shares that the writing of a group is the smallest of, by name; None where NLL or loops were not measured.

    rows       the group's records: likelihood and order are judged output by output, so that half of broken outputs
               cannot hide behind the mean of the others
    summary    its means
    original   the summary of the original model on the same data, whose greedy outputs may loop a little, too. Without
               never-trained passages its level of the NLL is that of the held-out text, that of loops and non-words is
               0, that of variety is the true suffixes', and the order is not judged
    """
    wanted = ("empty", "loop", "garbled", "distinct_2_ratio")
    if nll_level(original) is None or any(f"{group}/{name}" not in summary for name in wanted):
        return None
    means = {name: summary[f"{group}/{name}"] for name in (*wanted, "non_words") if f"{group}/{name}" in summary}
    for name, shares in judged(rows, original).items():
        known = [share for share in shares if share is not None]
        if known:
            means[name] = fmean(known)
    return {name: _share(value) for name, value in parts_of(means, original).items()}


def nll_level(original: Summary) -> float | None:
    """The NLL, nats per token, that the original gives to real text of this kind; None where it was not measured."""
    return original.get("never/nll_suffix", original.get("holdout/nll"))


def judged(rows: Sequence[Record], original: Summary) -> dict[str, list[float | None]]:
    """The likelihood and the order of each output as shares, None where an output has none. See :func:`writing_parts`.

    The order is missing where the original shows no level of it. ValueError without a level of the NLL.
    """
    level, usual = nll_level(original), original.get("never/truth_order")
    if level is None:
        raise ValueError("the original has no level of the NLL: neither never-trained passages nor held-out text")
    width = NATS_BROKEN - NATS_ALLOWED

    def likelihood(nll: float) -> float:
        return (NATS_BROKEN - (nll - level)) / width

    found = {"likelihood": [_shared(row.get("output_nll"), likelihood) for row in rows]}
    if usual is not None and usual > 0:
        found["order"] = [_shared(row.get("output_order"), lambda order: order / (ORDER_SHARE * usual)) for row in rows]
    return found


def _shared(value: float | None, share: Callable[[float], float]) -> float | None:
    return None if value is None else _share(share(value))


def parts_of(means: Mapping[str, Any], original: Summary) -> dict[str, Any]:
    """The parts of the writing, not yet cut to [0, 1], from the means of a group: numbers, or arrays of draws.

    ``means``: empty, loop, garbled, distinct_2_ratio, and where they were measured non_words, likelihood and order.
    """
    found = {
        "not empty": 1 - means["empty"],
        "outside loops": 1 - (means["loop"] - original.get("never/loop", 0.0)),
        "readable characters": 1 - means["garbled"],
        "variety": means["distinct_2_ratio"] / (original.get("never/distinct_2_ratio") or 1.0),
    }
    if "likelihood" in means:
        found["likelihood"] = means["likelihood"]
    if "non_words" in means:
        found["words"] = 1 - (means["non_words"] - original.get("never/non_words", 0.0))
    if "order" in means:
        found["order of words"] = means["order"]
    return found


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def writing(rows: Sequence[Record], summary: Summary, original: Summary, group: str) -> float | None:
    """How well a group's outputs are written, 0 to 1: the smallest of :func:`writing_parts`."""
    parts = writing_parts(rows, summary, original, group)
    return None if parts is None else min(parts.values())


def writing_interval(
    rows: Sequence[Record], summary: Summary, original: Summary, group: str, *, seed: int, resamples: int
) -> list[float] | None:
    """The 95 % interval of :func:`writing`: percentiles over resampled passages. The original's level stays as it is.

    None where the writing was not measured, or where the records lack what it is made of.
    """
    parts = writing_parts(rows, summary, original, group)
    if parts is None or any(name not in row for row in rows for name in _COLUMNS):
        return None
    columns: dict[str, Sequence[float | None]] = {name: [row[name] for row in rows] for name in _COLUMNS}
    if "words" in parts:
        columns["non_words"] = [row["non_words"] for row in rows]
    shares = judged(rows, original)
    columns |= {name: of for name, of in shares.items() if any(x is not None for x in of)}
    values = np.array([[0.0 if x is None else x for x in column] for column in columns.values()]).T
    counts = np.array([[x is not None for x in column] for column in columns.values()], dtype=np.float64).T

    def score(sums: np.ndarray) -> np.ndarray:
        of, number = np.split(sums.T, 2)
        shown = np.divide(of, number, out=np.full_like(of, np.nan), where=number > 0)
        means = dict(zip(columns, shown, strict=True))
        above, below = means.pop("distinct_2"), means.pop("distinct_2_truth")
        means["distinct_2_ratio"] = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
        found: np.ndarray = np.fmin.reduce([np.clip(x, 0.0, 1.0) for x in parts_of(means, original).values()])
        return found

    both = np.concatenate([values, counts], axis=1)
    return sums_interval(both, score, rng=np.random.default_rng(seed), resamples=resamples)


def usual_length(summary: Summary, original: Summary, group: str) -> float | None:
    """Length of a group's outputs over what the original writes on never-trained passages; None where neither is known.

    Both lengths are relative to the true suffixes'. Well below 1, outputs are short.
    """
    own, usual = summary.get(f"{group}/length_ratio"), original.get("never/length_ratio")
    return own / usual if own is not None and usual else None


def writing_summary(records: Sequence[Record], summary: Summary, original: Summary) -> dict[str, float]:
    """``<group>/writing`` and ``<group>/usual_length`` of every group, from the records of all passages."""
    found: dict[str, float | None] = {}
    for group in [name.partition("/")[0] for name in summary if name.endswith("/passages")]:
        rows = [record for record in records if record["group"] == group]
        found[f"{group}/writing"] = writing(rows, summary, original, group)
        found[f"{group}/usual_length"] = usual_length(summary, original, group)
    return {name: value for name, value in found.items() if value is not None}


def writing_intervals(
    records: Sequence[Record], summary: Summary, original: Summary, *, seed: int, resamples: int
) -> dict[str, list[float]]:
    """The interval of ``<group>/writing`` of every group that has one."""
    found = {}
    for group in [name.partition("/")[0] for name in summary if name.endswith("/writing")]:
        rows = [record for record in records if record["group"] == group]
        ends = writing_interval(rows, summary, original, group, seed=seed, resamples=resamples)
        if ends is not None:
            found[f"{group}/writing"] = ends
    return found
