"""What the other passages say about a token: an n-gram model that leaves the passage itself out.

Passages of one form share their template and not their private facts. So an n-gram model of the *other* passages finds
a template token likely and a private one not, without any other data. Interpolated absolute discounting (Ney, Essen and
Kneser 1994): a context gives ``discount`` of each seen token's count to the context that is one token shorter. This
module knows token ids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

Gram = tuple[int, ...]


def leave_one_out_logprobs(
    passages: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    order: int = 5,
    discount: float = 0.75,
    least_context: int = 0,
) -> list[np.ndarray]:
    """log p(token | the ``order`` - 1 tokens before it) of every token, from the counts of all other passages.

    One float64 array a passage. The shortest context has no token, below it lies 1 / ``vocab_size``. NaN where no other
    passage has even the last ``least_context`` tokens before a token: then the others say nothing about it.
    """
    own = [_counts(passage, order) for passage in passages]
    total = Counter[Gram]()
    for counts in own:
        total.update(counts)
    followers: dict[Gram, dict[int, int]] = defaultdict(dict)
    for gram, count in total.items():
        followers[gram[:-1]][gram[-1]] = count
    return [
        np.array(
            [
                logprob if length >= least_context else np.nan
                for t in range(len(passage))
                for logprob, length in [_logprob(passage, t, followers, counts, vocab_size, order, discount)]
            ]
        )
        for passage, counts in zip(passages, own, strict=True)
    ]


def _counts(passage: Sequence[int], order: int) -> Counter[Gram]:
    """How often every n-gram of 1 to ``order`` tokens stands in a passage."""
    grams = Counter[Gram]()
    for n in range(1, order + 1):
        grams.update(tuple(passage[end - n : end]) for end in range(n, len(passage) + 1))
    return grams


def _logprob(
    passage: Sequence[int],
    t: int,
    followers: dict[Gram, dict[int, int]],
    own: Counter[Gram],
    vocab_size: int,
    order: int,
    discount: float,
) -> tuple[float, int]:
    """The log-prob of token t, and how many tokens of its context the others have."""
    p, known = 1 / vocab_size, 0
    for n in range(min(order, t + 1)):
        context = tuple(passage[t - n : t])
        others = {v: c for v, count in followers.get(context, {}).items() if (c := count - own[(*context, v)]) > 0}
        size = sum(others.values())
        if size == 0:
            break
        known = n
        p = max(others.get(passage[t], 0) - discount, 0.0) / size + discount * len(others) / size * p
    return float(np.log(p)), known
