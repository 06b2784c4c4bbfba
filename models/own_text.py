"""What a model writes by itself, as text to keep: it shows the model's general knowledge without any training data.

Nobody has a list of everything that a model should still know after unlearning. But a model that is sampled from its
start token recites what it knows. Its own samples, without those that resemble the forget set, can replace that list.
This module knows token ids and nothing about passages or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    """Sample ``count`` texts of at most ``length`` tokens. Return those unlike the forget set, the most likely first.

    start_id     the token before the first token of a document, usually EOS or BOS; every returned text begins with it
    forget       token ids of the passages to unlearn
    max_overlap  a text is dropped if more than this share of its ``ngram``-grams occurs in the forget set, because
                 keeping it would protect passages of the same kind

    Texts shorter than 4 · ``ngram`` tokens are dropped too. Likelihood is the mean log-prob per token.
    """
    known = set().union(*(grams_of(sequence, ngram) for sequence in forget))
    texts = [text.ids[1:] for text in sampled_texts(model, [[start_id]] * count, length=length, seed=seed)]
    return [[start_id, *ids] for ids in texts if len(ids) >= 4 * ngram and overlap(ids, known, ngram) <= max_overlap]


def start_token(tokenizer: Any) -> int | None:
    """The token before the first token of a document: BOS, else EOS, else None."""
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if found is None else int(found)


class Written(NamedTuple):
    """What a model wrote behind a head: ``ids`` with the head; the mean log-prob of a new token, nats."""

    ids: list[int]
    likelihood: float


def sampled_texts(model: nn.Module, heads: Sequence[Sequence[int]], *, length: int, seed: int) -> list[Written]:
    """A text behind each head, of at most ``length`` new tokens; the most likely first."""
    generation = generate(model, heads, Sampling(response_length=length), seed=seed, slots=128)
    likelihood = (generation.logprobs * generation.mask).sum(dim=1) / generation.mask.sum(dim=1)
    order = likelihood.argsort(descending=True, stable=True).tolist()
    return [
        Written([*heads[i], *generation.tokens[i][generation.mask[i]].tolist()], float(likelihood[i])) for i in order
    ]


def overlap(ids: Sequence[int], known: Grams, ngram: int) -> float:
    """Share of the n-grams of ``ids`` that are in ``known``. It is 0 for a text shorter than n."""
    total = len(ids) - ngram + 1
    return sum(tuple(ids[i : i + ngram]) in known for i in range(total)) / total if total > 0 else 0.0


def standing(passages: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], *, ngram: int = 20) -> float:
    """The share of a passage's n-grams that stand in some texts, mean over the passages; 0 without passages.

    Example (n 2): of "a b c" a half stands in "x a b".
    """
    known = set().union(*(grams_of(text, ngram) for text in texts))
    return sum(overlap(ids, known, ngram) for ids in passages) / len(passages) if passages else 0.0


def grams_of(ids: Sequence[int], ngram: int) -> Grams:
    """The n-grams of a text."""
    return {tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)}
