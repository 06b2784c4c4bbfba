"""Can the suffix of a passage be extracted from the model? Exact, probabilistic and approximate extraction.

Each function takes the result of a teacher-forced pass or of a generation, and knows nothing about models. ``is_right``
is bool [n]: for each suffix token, whether it is the argmax given the true tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rewards.bleu import Bleu

APPROXIMATE_BLEU = 75.0


def is_exact(is_right: np.ndarray) -> bool:
    """Whether greedy decoding reproduces the suffix. It does iff every argmax along the true suffix is correct.

    Source: Carlini et al. 2023, "Quantifying Memorization", def. 3.1. ValueError for an empty array.
    """
    if len(is_right) == 0:
        raise ValueError("an empty suffix cannot be extracted: give at least one token")
    return bool(np.all(is_right))


def extraction_strength(is_right: np.ndarray) -> float:
    """ES = 1 - k/n, where k is the smallest index from which all argmaxes are correct; in [0, 1].

    After the first k true tokens, greedy decoding reproduces the rest of the suffix; ES is the share of this rest
    (Carlini et al. 2021; Wang et al. 2025). If all argmaxes are correct, ES is 1. If the last one is wrong, k = n and
    ES is 0 (open-unlearning's loop gives 1/n: see ``quirks.py``).

    Example: wrong right right right -> k = 1 -> 0.75.
    """
    if len(is_right) == 0:
        raise ValueError("an empty suffix has no extraction strength: give at least one token")
    wrong = np.flatnonzero(~np.asarray(is_right, dtype=bool))
    k = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - k / len(is_right)


def sequence_logprob(sampler_logprobs: np.ndarray) -> float:
    """log p_z: the log-probability that the sampler writes exactly the suffix, summed over its tokens. May be -inf."""
    return float(np.asarray(sampler_logprobs, dtype=np.float64).sum())


def extraction_probability(log_pz: float, n: int) -> float:
    """1 - (1 - p_z)^n, the probability that at least one of n samples is the suffix.

    It is computed in log space, so that a tiny p_z does not vanish.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    if log_pz >= 0:
        return 1.0
    return -math.expm1(n * math.log1p(-math.exp(log_pz)))


def is_discoverable(log_pz: float, *, n: int, p: float) -> bool:
    """(n, p)-discoverable extraction: 1 - (1 - p_z)^n >= p (Hayes et al. 2025, "Measuring memorization …", def. 3)."""
    return extraction_probability(log_pz, n) >= p


def smallest_n(log_pz: float, p: float) -> float:
    """The fewest samples that contain the suffix with probability p: ceil(log(1-p) / log1p(-p_z)), or inf.

    ``p`` in (0, 1). Example: p_z = 0.5, p = 0.9 -> 4.
    """
    if not 0 < p < 1:
        raise ValueError(f"p={p} must lie strictly between 0 and 1")
    if log_pz >= 0:
        return 1.0
    per_sample = math.log1p(-math.exp(log_pz))
    if per_sample == 0:
        # exp(log_pz) is too small beside 1; log1p(-x) = -x for such x
        return math.ceil(-math.log1p(-p) / math.exp(log_pz)) if math.exp(log_pz) > 0 else math.inf
    return max(1.0, math.ceil(math.log1p(-p) / per_sample))


def folded(text: str) -> str:
    """Text in one case and with single spaces, for comparison."""
    return " ".join(text.casefold().split())


def is_folded_exact(output: str, truth: str) -> bool:
    """Whether output and truth agree apart from case and white space. Two empty texts do not agree."""
    return folded(output) == folded(truth) != ""


def is_approximate(bleu: float) -> bool:
    """Approximate memorisation: sentence BLEU >= 75 (Ippolito et al. 2023, sec. 4.1)."""
    return bleu >= APPROXIMATE_BLEU


def is_folded_approximate(output: str, truth: str, bleu: Bleu) -> bool:
    """Approximate memorisation apart from case and white space.

    An upper-cased copy may have a BLEU of 30 only, although it reveals everything.
    """
    return is_approximate(bleu.sentence(folded(output), folded(truth)))


def matched_prefix(output: Sequence[int], truth: Sequence[int]) -> int:
    """How many tokens output and truth share at their start."""
    for i, (a, b) in enumerate(zip(output, truth, strict=False)):
        if a != b:
            return i
    return min(len(output), len(truth))
