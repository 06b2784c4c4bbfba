"""From numbers of single passages to a summary: means by group, bootstrap intervals, membership, held-out text.

Metrics are named ``area/quantity``. The area is a group of passages, "holdout", "utility" or "membership". This module
knows records and statistics. It runs a model for the held-out text only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from ppo.io.surrogates import without_surrogates
from rewards.bleu import Bleu, corpus_score
from rewards.edit import SIGNATURE as EDIT_SIGNATURE

from . import secrets
from .extraction import APPROXIMATE_BLEU
from .intervals import mean_intervals, sums_interval
from .leak import SAMPLES, leak_name
from .membership import MIN_OTHERS, SCORES, loss_score, membership, min_k_plus_plus_score, min_k_score, zlib_score
from .perplexity import pooled, score_texts
from .protocols import Decoder, Passage, whole
from .settings import GROUPS, Settings, is_share
from .teacher import TokenStatistics
from .utility import CLOZE_SIGNATURE, final_words
from .writing import NATS_ALLOWED, NATS_BROKEN, ORDER_SHARE

Record = dict[str, Any]
MEMBERS, OTHERS = "forget", "never"
RATIOS = {"length_ratio": ("length", "length_truth"), "distinct_2_ratio": ("distinct_2", "distinct_2_truth")}


def group_means(records: Sequence[Record], quantities: Sequence[str], bleu_statistics: np.ndarray) -> dict[str, float]:
    """Means of the given quantities by group, and what only a group has: size, corpus BLEU, ratios to the truth.

    ``bleu_statistics`` int64 [N, 10], one row per record. A mean excludes passages that lack the quantity (None). A
    quantity that all passages of a group lack is skipped.
    """
    summary: dict[str, float] = {}
    for group in _groups(records):
        places = [i for i, r in enumerate(records) if r["group"] == group]
        rows = [records[i] for i in places]
        summary[f"{group}/passages"] = len(rows)
        for name in quantities:
            values = [r[name] for r in rows if r.get(name) is not None]
            if values:
                summary[f"{group}/{name}"] = float(np.mean(values))
        summary[f"{group}/corpus_bleu"] = corpus_score(bleu_statistics[places].sum(axis=0).tolist())
        for name, (above, below) in RATIOS.items():
            summary[f"{group}/{name}"] = float(_ratio(_columns(rows, above, below).sum(axis=0, keepdims=True))[0])
    return summary


def _groups(records: Sequence[Record]) -> list[str]:
    """The groups that occur: the known ones in their usual order, then the others in order of first occurrence."""
    present = list(dict.fromkeys(r["group"] for r in records))
    return [g for g in GROUPS if g in present] + [g for g in present if g not in GROUPS]


def _columns(rows: Sequence[Record], *names: str) -> np.ndarray:
    """[N, len(names)]"""
    return np.array([[r[name] for name in names] for r in rows], dtype=np.float64)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """First column divided by the second, [R]. It is 0 where the second is 0."""
    above, below = sums[:, 0], sums[:, 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def group_intervals(
    records: Sequence[Record], quantities: Sequence[str], bleu_statistics: np.ndarray, settings: Settings
) -> dict[str, list[float]]:
    """95 % intervals of the result of :func:`group_means`: exact for shares, bootstrap for the rest.

    As there, passages that lack a quantity are left out of its interval.
    """
    rng = np.random.default_rng(settings.seed)
    intervals: dict[str, list[float]] = {}
    for group in _groups(records):
        places = [i for i, r in enumerate(records) if r["group"] == group]
        rows = [records[i] for i in places]
        names = [name for name in quantities if all(r.get(name) is not None for r in rows)]
        partial = [[n] for n in quantities if n not in names and any(r.get(n) is not None for r in rows)]
        for some in [names, *partial]:
            columns = _columns([r for r in rows if r.get(some[0]) is not None], *some)
            low, high = mean_intervals(
                columns, rng=rng, resamples=settings.resamples, is_share=[is_share(name) for name in some]
            )
            intervals |= {f"{group}/{name}": [float(a), float(b)] for name, a, b in zip(some, low, high, strict=True)}
        intervals[f"{group}/corpus_bleu"] = sums_interval(
            bleu_statistics[places], _corpus_scores, rng=rng, resamples=settings.resamples
        )
        for name, (above, below) in RATIOS.items():
            columns = _columns(rows, above, below)
            intervals[f"{group}/{name}"] = sums_interval(columns, _ratio, rng=rng, resamples=settings.resamples)
    return intervals


def _corpus_scores(sums: np.ndarray) -> np.ndarray:
    return np.array([corpus_score(row) for row in sums.round().astype(np.int64).tolist()])


def membership_scores(
    passages: Sequence[Passage], statistics: Sequence[TokenStatistics], tokenizer: Decoder, *, share: float
) -> list[dict[str, float]]:
    """The four membership scores of every passage, over all its tokens but the first."""
    rows = []
    for passage, found in zip(passages, statistics, strict=True):
        logprobs, means, deviations = (x[found.start :] for x in (found.logprobs, found.means, found.deviations))
        text = without_surrogates(tokenizer.decode(whole(passage), skip_special_tokens=True))
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
    """How well every score tells forget from never-trained passages. Empty when one of the two groups is missing."""
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
        intervals[f"membership/{name}_auc"] = list(found.auc_interval)
        if found.tpr is not None and found.tpr_interval is not None:
            summary[f"membership/{name}_tpr"] = found.tpr
            intervals[f"membership/{name}_tpr"] = list(found.tpr_interval)
    return summary, intervals


def holdout_summary(
    model: nn.Module, tokenizer: Decoder, holdout: Sequence[Sequence[int]], settings: Settings
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Perplexity of held-out text and cloze accuracy on its sentence-final words, from one pass.

    The intervals are over texts. Both dicts are empty without text.
    """
    if not holdout:
        return {}, {}
    pieces = score_texts(model, holdout, batch_tokens=settings.batch_tokens, chunk_tokens=settings.chunk_tokens)
    found = pooled(pieces)
    summary = {
        "holdout/perplexity": found.value,
        "holdout/nll": found.nll / found.num_tokens,
        "holdout/tokens": float(found.num_tokens),
    }
    sums = np.zeros((len(holdout), 4))  # NLL, tokens, words right, words: of each text
    for piece in pieces:
        sums[piece.text, :2] += piece.statistics.nll, len(piece.statistics) - piece.statistics.start
    for text, is_right in final_words(pieces, tokenizer):
        sums[text, 2:] += is_right, 1
    rng = np.random.default_rng(settings.seed)
    low, high = sums_interval(sums[:, :2], _ratio, rng=rng, resamples=settings.resamples)
    intervals = {"holdout/perplexity": [_exp(low), _exp(high)], "holdout/nll": [low, high]}
    if sums[:, 3].any():
        summary["utility/cloze"] = float(sums[:, 2].sum() / sums[:, 3].sum())
        summary["utility/cloze_words"] = float(sums[:, 3].sum())
        intervals["utility/cloze"] = sums_interval(sums[:, 2:], _ratio, rng=rng, resamples=settings.resamples)
    return summary, intervals


def _exp(nll: float) -> float:
    return math.exp(min(nll, 700.0))


def signatures(bleu: Bleu, settings: Settings) -> dict[str, str]:
    """Signatures of what exactly was measured, in sacrebleu's style, by quantity or by family of quantities."""
    sampler = f"temperature:{settings.temperature:g}|top_k:{settings.top_k}|top_p:{settings.top_p:g}"
    samples = f"{sampler}|samples:{settings.num_samples}|seed:{settings.seed}|context:prefix"
    teacher = "teacher-forced|context:prefix|unit:token"
    near = f"lower-bound|substitutions<={settings.near_tokens}|texts:{settings.near_passes}|best-first|{sampler}"
    output = "of:greedy-output|cut:suffix-length|context:prefix"
    return secrets.signatures(settings.secrets_by, samples=samples, hints=settings.hints) | {
        "bleu": bleu.signature,
        "corpus_bleu": bleu.corpus_signature,
        "approximate": f"approximate|bleu>={APPROXIMATE_BLEU:g}|{bleu.signature}",
        "approximate_folded": f"approximate|bleu>={APPROXIMATE_BLEU:g}|folded:case+space|{bleu.signature}",
        "edit": EDIT_SIGNATURE,
        "exact": "exact|decoding:greedy|context:prefix|unit:token",
        "exact_long": "exact|decoding:greedy|context:pre-prefix+prefix|unit:token|by:teacher-forcing",
        **{
            f"exact_after_{k}": f"exact|decoding:greedy|context:prefix+{k}|unit:token|by:teacher-forcing"
            for k in sorted({settings.more_tokens, *settings.hints})
        },
        "exact_folded": "exact|decoding:greedy|context:prefix|unit:text|folded:case+space",
        "exact_sampled": f"exact|{samples}",
        "bleu_sampled": f"mean-over-samples|{samples}|{bleu.signature}",
        "bleu_sampled_best": f"best-of-samples|{samples}|{bleu.signature}",
        "matched_prefix": "tokens-right-from-the-start|decoding:greedy|context:prefix|unit:token",
        "discoverable": f"np-discoverable|{sampler}|n:{settings.discoverable_n}|p:{settings.discoverable_p:g}",
        "sequence_p": f"product-of-token-p|{sampler}|{teacher}",
        **{leak_name(k): f"leak|k:{k}|1-(1-p)^k|{sampler}|{teacher}" for k in SAMPLES},
        **{
            f"{name}_{kind}": f"{what}|tokens:{kind},run:{settings.shared_run}|{teacher}"
            for name, what in (("ma", "ma"), ("p", "mean-over-tokens|temperature:1"), ("nll", "nll|nats|temperature:1"))
            for kind in ("unshared", "shared")
        },
        "near_p": near,
        **{f"near_leak_{k}": f"leak|k:{k}|{near}" for k in SAMPLES},
        "share_unshared": f"share-of-suffix-tokens|no-run-of:{settings.shared_run}|in:all-passages-given",
        "longest_run": f"argmaxes-in-a-row|tokens:suffix|{teacher}",
        "lens_right": f"logit-lens|argmax-after-any-block|tokens:unshared,most:{settings.lens_tokens}|{teacher}",
        "lens_layer": f"logit-lens|first-argmax|never:blocks+1|tokens:unshared,most:{settings.lens_tokens}|{teacher}",
        "extraction_strength": f"es|1-k/n|none-right:0|{teacher}",
        "ma": "ma|tokens:2..T|context:whole-passage|unit:token",
        "ma_suffix": f"ma|tokens:suffix|{teacher}",
        "el_10": f"el|n:10|divisor:reference|decoding:greedy|stride:{settings.el_stride}",
        "el_10_generated": f"el|n:10|divisor:generated|decoding:greedy|stride:{settings.el_stride}",
        "true_token_p": f"mean-over-tokens|temperature:1|{teacher}",
        "nll_suffix": f"nll|mean-over-tokens|nats|temperature:1|{teacher}",
        "perplexity": "perplexity|exp(total-nll/tokens)|every-token-once|first-token-unscored",
        "cloze": CLOZE_SIGNATURE,
        "membership": f"membership|forget-vs-never|tokens:2..T|min-k:{settings.min_k_share:g}|fpr:<=0.01"
        f"|others:>={MIN_OTHERS}",
        "length": f"tokens|without:eos|{output}",
        "empty": f"no-token-or-white-space|{output}",
        "distinct_2": f"distinct|n:2|unit:token|mean-over-passages|{output}",
        "loop": f"share-of-tokens|period<=12|rounds>=3|{output}",
        "garbled": f"share-of-characters|replacement+control+private+unassigned|{output}",
        "copied": f"share-of-5-grams-in-prompt|unit:token|{output}",
        "non_words": f"share-of-words|in-no-text-at-hand|first-and-last-left-out|no-case|{output}",
        "output_order": f"nll-of-shuffled-words-less-nll|under:original-model|nats|seed:{settings.seed}|{output}",
        "truth_order": f"nll-of-shuffled-words-less-nll|under:original-model|nats|seed:{settings.seed}|of:true-suffix",
        "writing": f"min-of-shares|level:original-on-never|nats:{NATS_ALLOWED:g}-{NATS_BROKEN:g}|order:{ORDER_SHARE:g}",
        "usual_length": f"length-ratio|over:original-on-never|{output}",
        "output_nll": f"nll|under:original-model|mean-over-tokens|nats|temperature:1|{output}",
        "intervals": f"shares:clopper-pearson|auc:newcombe-5|others:bootstrap,percentile,draws:{settings.resamples},"
        f"seed:{settings.seed}|level:0.95|unit:passage",
    }
