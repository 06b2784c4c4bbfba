"""From numbers of single passages to a summary: means by group, bootstrap intervals, membership, held-out text.

Metrics are named ``area/quantity``; the area is a group of passages, "holdout" or "membership". This module knows
records and statistics, and runs no model but for the held-out perplexity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from rewards.bleu import Bleu
from rewards.edit import SIGNATURE as EDIT_SIGNATURE

from .intervals import mean_intervals
from .membership import SCORES, loss_score, membership, min_k_plus_plus_score, min_k_score, zlib_score
from .perplexity import perplexity
from .protocols import Decoder, Passage, whole
from .settings import GROUPS, Settings
from .teacher import TokenStatistics

Record = dict[str, Any]
MEMBERS, OTHERS = "forget", "never"


def group_means(records: Sequence[Record], quantities: Sequence[str], bleu: Bleu) -> dict[str, float]:
    """Means of the given quantities by group, and what only a group has: size, corpus BLEU, ratios to the truth.

    Passages without a quantity (None) are left out of its mean; a quantity that none has is left out.
    """
    summary: dict[str, float] = {}
    for group in _groups(records):
        rows = [r for r in records if r["group"] == group]
        summary[f"{group}/passages"] = len(rows)
        for name in quantities:
            values = [r[name] for r in rows if r.get(name) is not None]
            if values:
                summary[f"{group}/{name}"] = float(np.mean(values))
        summary[f"{group}/corpus_bleu"] = bleu.corpus([r["output"] for r in rows], [r["truth"] for r in rows])
        summary[f"{group}/length_ratio"] = _ratio(rows, "length", "length_truth")
        summary[f"{group}/distinct_2_ratio"] = _ratio(rows, "distinct_2", "distinct_2_truth")
    return summary


def _groups(records: Sequence[Record]) -> list[str]:
    """The groups that occur: the known ones in their usual order, then others as they come."""
    present = list(dict.fromkeys(r["group"] for r in records))
    return [g for g in GROUPS if g in present] + [g for g in present if g not in GROUPS]


def _ratio(rows: Sequence[Record], above: str, below: str) -> float:
    total = sum(r[below] for r in rows)
    return sum(r[above] for r in rows) / total if total else 0.0


def group_intervals(records: Sequence[Record], quantities: Sequence[str], settings: Settings) -> dict[str, list[float]]:
    """95 % bootstrap intervals of the group means; quantities that some passage of a group lacks have none."""
    rng = np.random.default_rng(settings.seed)
    intervals: dict[str, list[float]] = {}
    for group in _groups(records):
        rows = [r for r in records if r["group"] == group]
        names = [name for name in quantities if all(r.get(name) is not None for r in rows)]
        low, high = mean_intervals(
            np.array([[r[name] for name in names] for r in rows]), rng=rng, resamples=settings.resamples
        )
        intervals |= {f"{group}/{name}": [float(a), float(b)] for name, a, b in zip(names, low, high, strict=True)}
    return intervals


def membership_scores(
    passages: Sequence[Passage], statistics: Sequence[TokenStatistics], tokenizer: Decoder, *, share: float
) -> list[dict[str, float]]:
    """The four membership scores of every passage, over all its tokens but the first."""
    rows = []
    for passage, found in zip(passages, statistics, strict=True):
        logprobs, means, deviations = (x[found.start :] for x in (found.logprobs, found.means, found.deviations))
        text = tokenizer.decode(whole(passage), skip_special_tokens=True)
        values = (
            loss_score(logprobs),
            zlib_score(logprobs, text),
            min_k_score(logprobs, share=share),
            min_k_plus_plus_score(logprobs, means, deviations, share=share),
        )
        rows.append(dict(zip(SCORES, values, strict=True)))
    return rows


def membership_summary(
    passages: Sequence[Passage], scores: Sequence[dict[str, float]], settings: Settings
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Power of every score in telling forget from never-trained passages; nothing where one of the two is missing."""
    summary: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    if not {MEMBERS, OTHERS} <= {p.group for p in passages}:
        return summary, intervals
    rng = np.random.default_rng(settings.seed)
    for name in SCORES:
        members, others = (
            np.array([s[name] for p, s in zip(passages, scores, strict=True) if p.group == group])
            for group in (MEMBERS, OTHERS)
        )
        found = membership(members, others, rng=rng, resamples=settings.resamples)
        summary[f"membership/{name}_auc"] = found.auc
        summary[f"membership/{name}_advantage"] = found.advantage
        summary[f"membership/{name}_tpr"] = found.tpr_at_1_percent_fpr
        intervals[f"membership/{name}_advantage"] = list(found.interval)
    return summary, intervals


def holdout_summary(model: nn.Module, holdout: Sequence[Sequence[int]], settings: Settings) -> dict[str, float]:
    """Perplexity of held-out text; nothing where there is none."""
    if not holdout:
        return {}
    found = perplexity(model, holdout, batch_tokens=settings.batch_tokens, chunk_tokens=settings.chunk_tokens)
    return {
        "holdout/perplexity": found.value,
        "holdout/nll": found.nll / found.num_tokens,
        "holdout/tokens": float(found.num_tokens),
    }


def signatures(bleu: Bleu, settings: Settings) -> dict[str, str]:
    """What exactly was measured, in sacrebleu's manner."""
    sampler = f"temperature:{settings.temperature:g}|top_k:{settings.top_k}|top_p:{settings.top_p:g}"
    return {
        "bleu": bleu.signature,
        "corpus_bleu": bleu.corpus_signature,
        "edit": EDIT_SIGNATURE,
        "exact": "exact|decoding:greedy|context:prefix|unit:token",
        "exact_sampled": f"exact|{sampler}|samples:{settings.num_samples}|seed:{settings.seed}|context:prefix",
        "discoverable": f"np-discoverable|{sampler}|n:{settings.discoverable_n}|p:{settings.discoverable_p:g}",
        "membership": f"membership|forget-vs-never|tokens:2..T|min-k:{settings.min_k_share:g}",
        "distinct_2": "distinct|n:2|unit:token|mean-over-passages",
        "intervals": f"bootstrap|percentile|level:0.95|unit:passage|draws:{settings.resamples}|seed:{settings.seed}",
    }
