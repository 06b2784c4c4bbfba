"""Can the suffix of a passage be got out of the model? Exact, strong, probabilistic and approximate extraction.

Each function takes what a teacher-forced pass or a generation gave; it knows nothing about models. ``is_right`` is bool
[n]: for each suffix token, whether it is the argmax given the true tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rewards.bleu import Bleu

APPROXIMATE_BLEU = 75.0


def is_exact(is_right: np.ndarray) -> bool:
    """Whether greedy decoding reproduces the suffix: it does iff every argmax along the true suffix is right.

    Source: Carlini et al. 2023, "Quantifying Memorization", def. 3.1. An empty array raises ValueError.
    """
    if len(is_right) == 0:
        raise ValueError("an empty suffix cannot be extracted: give at least one token")
    return bool(np.all(is_right))


def extraction_strength(is_right: np.ndarray) -> float:
    """ES = 1 - k/n with k the smallest index from which all argmaxes are right; in [0, 1].

    The share of the suffix that need not be shown for the rest to follow greedily (Carlini et al. 2021; Wang et al.
    2025). All right: 1. The last one wrong: k = n, so 0 (open-unlearning's loop gives 1/n there: see ``quirks.py``).

    Example: wrong right right right -> k = 1 -> 0.75.
    """
    if len(is_right) == 0:
        raise ValueError("an empty suffix has no extraction strength: give at least one token")
    wrong = np.flatnonzero(~np.asarray(is_right, dtype=bool))
    k = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - k / len(is_right)


def sequence_logprob(sampler_logprobs: np.ndarray) -> float:
    """log p_z: log-probability that the sampler writes exactly the suffix, the sum over its tokens; may be -inf."""
    return float(np.asarray(sampler_logprobs, dtype=np.float64).sum())


def extraction_probability(log_pz: float, n: int) -> float:
    """1 - (1 - p_z)^n, the chance that at least one of n samples is the suffix; in log space, so tiny p_z survive."""
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    if log_pz >= 0:
        return 1.0
    return -math.expm1(n * math.log1p(-math.exp(log_pz)))


def is_discoverable(log_pz: float, *, n: int, p: float) -> bool:
    """(n, p)-discoverable extraction: 1 - (1 - p_z)^n >= p (Hayes et al. 2025, "Measuring memorization …", def. 3)."""
    return extraction_probability(log_pz, n) >= p


def smallest_n(log_pz: float, p: float) -> float:
    """The fewest samples that contain the suffix with probability p: ceil(log(1-p) / log1p(-p_z)); inf if never.

    ``p`` in (0, 1). Example: p_z = 0.5, p = 0.9 -> 4.
    """
    if not 0 < p < 1:
        raise ValueError(f"p={p} must lie strictly between 0 and 1")
    if log_pz >= 0:
        return 1.0
    per_sample = math.log1p(-math.exp(log_pz))
    if per_sample == 0:
        # exp underflowed beside 1; log1p(-x) = -x there
        return math.ceil(-math.log1p(-p) / math.exp(log_pz)) if math.exp(log_pz) > 0 else math.inf
    return max(1.0, math.ceil(math.log1p(-p) / per_sample))


def folded(text: str) -> str:
    """Text without differences of case and white space, for comparison."""
    return " ".join(text.casefold().split())


def is_folded_exact(output: str, truth: str) -> bool:
    """Whether output and truth agree up to case and white space; two empty texts do not count."""
    return folded(output) == folded(truth) != ""


def is_approximate(bleu: float) -> bool:
    """Approximate memorisation: sentence BLEU >= 75 (Ippolito et al. 2023, sec. 4.1)."""
    return bleu >= APPROXIMATE_BLEU


def is_folded_approximate(output: str, truth: str, bleu: Bleu) -> bool:
    """Approximate memorisation up to case and white space: an upper-cased copy has a BLEU of 30, and gives all away."""
    return is_approximate(bleu.sentence(folded(output), folded(truth)))


def matched_prefix(output: Sequence[int], truth: Sequence[int]) -> int:
    """How many tokens output and truth share from the start."""
    for i, (a, b) in enumerate(zip(output, truth, strict=False)):
        if a != b:
            return i
    return min(len(output), len(truth))
