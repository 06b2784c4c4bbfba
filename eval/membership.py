"""Membership inference: can the model's likelihoods tell text that it was trained on from other text?

One teacher-forced pass gives four scores per sequence, each higher for suspected members. Their power is measured by
the AUC, by its distance from 0.5 (an AUC *below* 0.5 reveals members too), and by the true-positive rate at 1 % false
positives. This module knows arrays.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from .intervals import draw_counts, ends

SCORES = ("loss", "zlib", "min_k", "min_k_plus_plus")


def loss_score(logprobs: np.ndarray) -> float:
    """Mean log-prob of the tokens, nats (Yeom et al. 2018)."""
    return float(np.mean(_scored(logprobs)))


def zlib_score(logprobs: np.ndarray, text: str) -> float:
    """-(summed NLL) / bytes of the zlib-compressed text: NLL relative to redundancy (Carlini et al. 2021, sec. 5.2)."""
    return float(np.sum(_scored(logprobs))) / len(zlib.compress(text.encode("utf-8")))


def min_k_score(logprobs: np.ndarray, *, share: float = 0.2) -> float:
    """Mean log-prob of the ``share`` least likely tokens, at least one (min-k %, Shi et al. 2024)."""
    return _lowest_mean(_scored(logprobs), share)


def min_k_plus_plus_score(
    logprobs: np.ndarray, means: np.ndarray, deviations: np.ndarray, *, share: float = 0.2
) -> float:
    """min-k %++ (Zhang et al. 2025): min-k % of (log p - mu) / sigma, mu and sigma over the vocabulary per position."""
    return _lowest_mean((_scored(logprobs) - means) / deviations, share)


def _lowest_mean(values: np.ndarray, share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie in (0, 1]")
    k = max(1, int(len(values) * share))
    return float(np.mean(np.sort(values)[:k]))


def _scored(values: np.ndarray) -> np.ndarray:
    if len(values) == 0:
        raise ValueError("a membership score needs at least one scored token")
    return np.asarray(values, dtype=np.float64)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Probability that a member scores higher than a non-member, in [0, 1]. Ties count one half.

    This is the Mann-Whitney statistic, computed from average ranks. ValueError for an empty side.
    """
    members, others = _sides(members, others)
    ordered, inverse, counts = np.unique(np.concatenate([members, others]), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # average rank, from 1, of every distinct value
    total = ranks[inverse[: len(members)]].sum()
    assert len(ordered) == len(ranks)
    return float((total - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, *, fpr: float = 0.01) -> float:
    """Share of members above the lowest threshold that at most ``fpr`` of the others exceed, in [0, 1].

    With fewer than 1/fpr others, no false positive is allowed.
    """
    members, others = _sides(members, others)
    allowed = int(fpr * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    threshold = np.sort(others)[::-1][allowed]
    return float(np.mean(members > threshold))


def _sides(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(members) == 0 or len(others) == 0:
        raise ValueError(f"membership needs both sides: got {len(members)} members and {len(others)} others")
    return np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)


@dataclass(frozen=True)
class Membership:
    """The power of one score. ``advantage`` is |AUC - 0.5|, from 0 (nothing revealed) to 0.5.

    Intervals are bootstrap intervals, 95 %.
    """

    auc: float
    auc_interval: tuple[float, float]
    advantage: float
    interval: tuple[float, float]
    tpr_at_1_percent_fpr: float
    tpr_interval: tuple[float, float]


def membership(
    members: np.ndarray, others: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000
) -> Membership:
    """The power of one score, from its values for members and for non-members."""
    value, tpr = auc(members, others), tpr_at_fpr(members, others)
    aucs, tprs = resampled(members, others, rng=rng, resamples=resamples)
    return Membership(
        value, _interval(aucs), abs(value - 0.5), _interval(np.abs(aucs - 0.5)), tpr, _interval(tprs)
    )  # fmt: skip


def resampled(
    members: np.ndarray,
    others: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    fpr: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """(AUC, TPR at ``fpr``) of bootstrap draws, each float64 [R]. The two sides are drawn independently.

    A draw is a row of counts over the distinct values in ascending order. Both statistics are sums over such rows.
    """
    members, others = _sides(members, others)
    distinct, places = np.unique(np.concatenate([members, others]), return_inverse=True)
    drawn = draw_counts(places[: len(members)], len(distinct), resamples, rng=rng)
    against = draw_counts(places[len(members) :], len(distinct), resamples, rng=rng)
    up_to = against.cumsum(axis=1)
    aucs = (drawn * (up_to - against / 2)).sum(axis=1) / (len(members) * len(others))
    allowed = int(fpr * len(others) + 1e-9)
    if allowed >= len(others):
        return aucs, np.ones(resamples)
    # the threshold is the largest value that more than ``allowed`` of the others reach
    threshold = (len(others) - (up_to - against) > allowed).sum(axis=1) - 1
    caught = len(members) - drawn.cumsum(axis=1)[np.arange(resamples), threshold]
    return aucs, caught / len(members)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = ends(draws)
    return float(low), float(high)
