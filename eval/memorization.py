"""Memorisation accuracy (MA) and extraction likelihood (EL), as Jang et al. 2023 ("Knowledge Unlearning") define them.

EL needs a generation from every start in a sequence, so it costs about as many greedy passes as there are starts.
``stride`` takes fewer starts. This module knows token sequences, not passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn

from ppo.config import Sampling
from ppo.generation import generate as ppo_generate
from ppo.lm.backbone import end_ids

from .protocols import Generate

Divisor = Literal["reference", "generated"]
Pair = tuple[list[int], list[int]]
"""The greedy continuation, and the true one."""


def memorization_accuracy(is_right: np.ndarray) -> float:
    """MA = share of positions whose argmax is correct, in [0, 1].

    For MA (Jang et al. 2023, eq. 3), ``is_right`` (bool) is over tokens 2 … T of the passage. Over the suffix tokens
    alone it gives "MA of the suffix", which is another quantity.
    """
    if len(is_right) == 0:
        raise ValueError("memorisation accuracy needs at least one scored token")
    return float(np.mean(is_right))


def ngram_overlap(
    generated: Sequence[int], reference: Sequence[int], n: int, *, divisor: Divisor = "reference"
) -> float:
    """Share of the generated n-grams (with multiplicity) that occur in the reference.

    The paper divides by the number of generated n-grams (eq. 2), its code by that of the reference. They differ when
    the generation ends early. Without an n-gram to divide by, the share is 0. Example, n=2: generated 1 2 3, reference
    1 2 9 9 -> "generated" 1/2, "reference" 1/3.
    """
    grams = [tuple(generated[i : i + n]) for i in range(len(generated) - n + 1)]
    known = {tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)}
    count = len(grams) if divisor == "generated" else len(reference) - n + 1
    return sum(gram in known for gram in grams) / count if count > 0 else 0.0


def extraction_likelihood(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    n: int = 10,
    divisor: Divisor = "reference",
    stride: int = 1,
    slots: int = 64,
    generate: Generate = ppo_generate,
) -> list[float]:
    """EL_n of every sequence: the mean n-gram overlap over the starts i = 1 … T-n (Jang et al. 2023, eq. 1).

    From each start the model continues greedily up to the sequence's length, and the continuation is compared with the
    true rest. ``stride`` k takes every k-th start. ValueError for a sequence of n tokens or fewer.
    """
    written = continue_from_starts(model, sequences, n=n, stride=stride, slots=slots, generate=generate)
    return [mean_overlap(pairs, n, divisor=divisor) for pairs in written]


def mean_overlap(pairs: Sequence[Pair], n: int, *, divisor: Divisor = "reference") -> float:
    """EL_n of one sequence, from the greedy continuation and the true rest at each start."""
    return float(np.mean([ngram_overlap(generated, rest, n, divisor=divisor) for generated, rest in pairs]))


def continue_from_starts(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    n: int = 10,
    stride: int = 1,
    slots: int = 64,
    generate: Generate = ppo_generate,
) -> list[list[Pair]]:
    """For every sequence, the pairs (greedy continuation, true rest) at its starts.

    If a sequence holds an EOS, no EOS ends a continuation but one that the true rest does not have at its place.
    """
    if n < 1 or stride < 1:
        raise ValueError(f"n={n} and stride={stride} must be at least 1")
    for i, sequence in enumerate(sequences):
        if len(sequence) <= n:
            raise ValueError(f"sequence {i} has {len(sequence)} tokens: EL_{n} needs more than {n}")
    ends = frozenset(end_ids(model))
    eos_ids = None if all(ends.isdisjoint(sequence) for sequence in sequences) else ()
    starts = [(len(s) - i, k) for k, s in enumerate(sequences) for i in range(1, len(s) - n + 1, stride)]
    found: list[list[Pair]] = [[] for _ in sequences]
    for part in _length_batches(sorted(starts)):
        sampling = Sampling(response_length=part[-1][0], temperature=0.0, eos_ids=eos_ids)
        generation = generate(model, [list(sequences[k][:-rest]) for rest, k in part], sampling, slots=slots)
        for row, (rest, k) in enumerate(part):
            continuation, truth = generation.tokens[row][generation.mask[row]].tolist()[:rest], sequences[k][-rest:]
            wrong = (i for i, token in enumerate(continuation) if token in ends and token != truth[i])
            found[k].append((continuation[: next(wrong, rest) + 1], list(truth)))
    return found


def _length_batches(starts: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Split (rest, sequence) pairs, sorted by rest, into parts that are generated together.

    The longest rest of a part is at most 25 % longer than its shortest.
    """
    parts: list[list[tuple[int, int]]] = []
    for start in starts:
        if parts and start[0] <= 1.25 * parts[-1][0][0]:
            parts[-1].append(start)
        else:
            parts.append([start])
    return parts
