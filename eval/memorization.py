"""Memorisation accuracy (MA) and extraction likelihood (EL), as Jang et al. 2023 ("Knowledge Unlearning") define them.

EL needs generations from every start, so it costs about as many greedy passes as there are starts; ``stride`` thins
them out. This module knows token sequences, not passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn

from ppo.config import Sampling
from ppo.generation import generate as ppo_generate

from .protocols import Generate

Divisor = Literal["reference", "generated"]
Pair = tuple[list[int], list[int]]
"""What was written, and what truly follows."""


def memorization_accuracy(is_right: np.ndarray) -> float:
    """MA = share of positions whose argmax is right, in [0, 1].

    ``is_right`` bool: over tokens 2 … T of the passage for MA (Jang et al. 2023, eq. 3); over the suffix tokens alone
    for "MA of the suffix", which is another quantity.
    """
    if len(is_right) == 0:
        raise ValueError("memorisation accuracy needs at least one scored token")
    return float(np.mean(is_right))


def ngram_overlap(
    generated: Sequence[int], reference: Sequence[int], n: int, *, divisor: Divisor = "reference"
) -> float:
    """Share of the generated n-grams (with multiplicity) that occur in the reference.

    The paper divides by the number of generated n-grams (eq. 2), its code by that of the reference; they differ where
    the generation ends early. No n-gram to divide by gives 0. Example, n=2: generated 1 2 3, reference 1 2 9 9 ->
    "generated" 1/2, "reference" 1/3.
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
    """EL_n of every sequence: the mean over starts i = 1 … T-n of the overlap of n-grams (Jang et al. 2023, eq. 1).

    From each start the model continues greedily to the sequence's end, and is compared with the true rest. ``stride`` k
    takes every k-th start. Raises ValueError for a sequence of n tokens or fewer.
    """
    written = continue_from_starts(model, sequences, n=n, stride=stride, slots=slots, generate=generate)
    return [mean_overlap(pairs, n, divisor=divisor) for pairs in written]


def mean_overlap(pairs: Sequence[Pair], n: int, *, divisor: Divisor = "reference") -> float:
    """EL_n of one sequence from what was written at each start and the true rest there."""
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
    """For every sequence (greedy continuation, true rest) at each of its starts; both divisors of EL_n take these."""
    if n < 1 or stride < 1:
        raise ValueError(f"n={n} and stride={stride} must be at least 1")
    for i, sequence in enumerate(sequences):
        if len(sequence) <= n:
            raise ValueError(f"sequence {i} has {len(sequence)} tokens: EL_{n} needs more than {n}")
    starts = [(len(s) - i, k) for k, s in enumerate(sequences) for i in range(1, len(s) - n + 1, stride)]
    found: list[list[Pair]] = [[] for _ in sequences]
    for part in _of_like_length(sorted(starts)):
        sampling = Sampling(response_length=part[-1][0], temperature=0.0)
        generation = generate(model, [list(sequences[k][:-rest]) for rest, k in part], sampling, slots=slots)
        for row, (rest, k) in enumerate(part):
            continuation = generation.tokens[row][generation.mask[row]].tolist()[:rest]
            found[k].append((continuation, list(sequences[k][-rest:])))
    return found


def _of_like_length(starts: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Rising (rest, sequence) in parts that are generated side by side, up to a quarter further than the shortest."""
    parts: list[list[tuple[int, int]]] = []
    for start in starts:
        if parts and start[0] <= 1.25 * parts[-1][0][0]:
            parts[-1].append(start)
        else:
            parts.append([start])
    return parts
