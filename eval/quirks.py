"""Quantities of reference implementations that differ from their definitions, each under its own name.

Published numbers depend on them. Use them to compare with such numbers, never for new results. Each docstring says what
differs. Both divisors of ``EL_n``, that of UL's code and that of its paper, are in ``memorization.ngram_overlap``. This
module knows arrays and texts, no models.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from .membership import loss_score, min_k_plus_plus_score, min_k_score, tpr_at_fpr
from .teacher import TokenStatistics

DEMEM_MA_TOKENS = 52


def open_unlearning_extraction_strength(is_right: np.ndarray) -> float:
    """ES of open-unlearning's loop: the search for k stops at n-1, so the last token has no influence.

    ``is_right`` bool [n]. It gives 1/n where ES is 0, even with every token wrong (n = 4: 0.25), and 0 for an empty
    suffix. Otherwise it equals ``extraction.extraction_strength``.
    """
    if len(is_right) == 0:
        return 0.0
    wrong = np.flatnonzero(~np.asarray(is_right, dtype=bool))
    k = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - min(k, len(is_right) - 1) / len(is_right)


OPEN_UNLEARNING_SHARE = 0.4
"""k of open-unlearning's min-k and min-k++ (configs/eval/tofu_metrics/mia_min_k.yaml); ours is 0.2."""


def open_unlearning_scores(statistics: TokenStatistics, size: int, truth: str) -> dict[str, float]:
    """Membership scores as open-unlearning computes them, each *lower* for suspected members.

    They are over the last ``size`` tokens, the suffix given its prefix, as its own are over the labelled tokens; this
    project's are over the whole passage. zlib divides the *mean* NLL by the compressed bytes of the suffix' text
    ``truth``; this project's divides the sum. open-unlearning's min-k leaves out the last labelled token of the longest
    text of a batch, which is the EOS that its data adds; a suffix has none, so all of its tokens count here.
    """
    logprobs, means, deviations = (x[-size:] for x in (statistics.logprobs, statistics.means, statistics.deviations))
    share = OPEN_UNLEARNING_SHARE
    return {
        "mia_loss": -loss_score(logprobs),
        "mia_zlib": -carlini_zlib_score(logprobs, truth),
        "mia_min_k": -min_k_score(logprobs, share=share),
        "mia_min_k_plus_plus": -min_k_plus_plus_score(logprobs, means, deviations, share=share),
    }


def demem_memorization_accuracy(is_right: np.ndarray, *, num_tokens: int = DEMEM_MA_TOKENS) -> float:
    """MA of DeMem's code: over the first ``num_tokens`` scored tokens, which are mostly the prefix.

    ``is_right`` bool over tokens 2 … T of prefix + suffix. A model that has forgotten every suffix still scores high.
    """
    if len(is_right) == 0:
        raise ValueError("memorisation accuracy needs at least one scored token")
    return float(np.mean(is_right[:num_tokens]))


def demem_mean(values: Sequence[float], lengths: Sequence[int]) -> float:
    """The mean of DeMem's code: it drops rows that generated at most one token, which hides collapse.

    ``lengths``: generated tokens of each row. nan when every row is dropped.
    """
    kept = [value for value, length in zip(values, lengths, strict=True) if length > 1]
    return float(np.mean(kept)) if kept else math.nan


def mean_sample_perplexity(nlls: Sequence[float], num_tokens: Sequence[int]) -> float:
    """The mean of the samples' own perplexities. One bad sample dominates it.

    ``nlls``: summed NLL of each sample, nats, over ``num_tokens`` tokens. By definition, perplexity is exp of the mean
    NLL over all tokens.
    """
    if not nlls:
        raise ValueError("the mean of no samples is not defined: give at least one")
    return float(np.mean([math.exp(min(nll / n, 700.0)) for nll, n in zip(nlls, num_tokens, strict=True)]))


def carlini_zlib_score(logprobs: np.ndarray, text: str) -> float:
    """-(*mean* NLL) / bytes of the zlib-compressed text, as in the code of Carlini et al. 2021.

    ``membership.zlib_score`` takes the summed NLL. This score approaches 0 as a text gets longer, even if nothing else
    changes. Among texts of one length the ranks are the same.
    """
    if len(logprobs) == 0:
        raise ValueError("a membership score needs at least one scored token")
    return float(np.mean(np.asarray(logprobs, dtype=np.float64))) / len(zlib.compress(text.encode("utf-8")))


def tpr_below_fpr(members: np.ndarray, others: np.ndarray, *, fpr: float = 0.01) -> float:
    """TPR at a false-positive rate strictly *below* ``fpr``, as in LiRA's code and its successors.

    With 100 others and 1 %, it allows no false positive, whereas ``membership.tpr_at_fpr`` allows one.
    """
    allowed = math.ceil(fpr * len(others) - 1e-9) - 1
    return tpr_at_fpr(members, others, fpr=max(allowed, 0) / max(len(others), 1))


def off_by_one_confidence(logprobs: np.ndarray, suffix_length: int) -> float:
    """The extraction challenge's baseline confidence: the mean log-prob of ``suffix_length`` tokens, one too early.

    ``logprobs`` over tokens 2 … T of prefix + guess. It excludes the last token of the guess and includes the last of
    the prefix. ``challenge.confidences`` takes the last ``suffix_length`` tokens.
    """
    if not 1 <= suffix_length < len(logprobs):
        raise ValueError(f"suffix_length={suffix_length} must lie between 1 and {len(logprobs) - 1}")
    return float(np.mean(np.asarray(logprobs, dtype=np.float64)[-suffix_length - 1 : -1]))
