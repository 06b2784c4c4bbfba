"""What a model writes by itself, as text to keep: general knowledge of it without a word of its training data.

Nobody has a list of everything that a model should still know after unlearning. But a model that is sampled from its
start token recites what it knows, so its own samples, less those that resemble the forget set, can stand in for that
list. This module knows token ids, nothing about passages or training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ppo.config import Sampling
from ppo.generation import generate

Grams = set[tuple[int, ...]]


def own_text(
    model: nn.Module,
    start_id: int,
    forget: Sequence[Sequence[int]],
    *,
    count: int,
    length: int,
    max_overlap: float = 0.1,
    ngram: int = 5,
    seed: int = 0,
) -> list[list[int]]:
    """Sample ``count`` texts of at most ``length`` tokens and return those unlike the forget set, likeliest first.

    start_id     the token that a document starts after, usually EOS or BOS; it leads every returned text
    forget       token ids of the passages to be unlearned
    max_overlap  a text is left out if more than this share of its ``ngram``-grams stands in the forget set, so that
                 passages of the same kind are not defended
    """
    known = set().union(*(_grams(sequence, ngram) for sequence in forget))
    sampling = Sampling(response_length=length)
    generation = generate(model, [[start_id]] * count, sampling, seed=seed, slots=128)
    likelihood = (generation.logprobs * generation.mask).sum(dim=1) / generation.mask.sum(dim=1)
    kept = []
    for index in likelihood.argsort(descending=True, stable=True).tolist():
        ids = generation.tokens[index][generation.mask[index]].tolist()
        if len(ids) >= 4 * ngram and overlap(ids, known, ngram) <= max_overlap:
            kept.append([start_id, *ids])
    return kept


def overlap(ids: Sequence[int], known: Grams, ngram: int) -> float:
    """Share of the n-grams of ``ids`` that are in ``known``; 0 for a text without an n-gram."""
    total = len(ids) - ngram + 1
    return sum(tuple(ids[i : i + ngram]) in known for i in range(total)) / total if total > 0 else 0.0


def _grams(ids: Sequence[int], ngram: int) -> Grams:
    return {tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)}
