"""The whole evaluation of one model: how much of the passages can be extracted, and how well the model still writes.

It takes two teacher-forced passes (with and without the pre-prefix), one for the logit lens, one greedy generation
pass, one sampled pass and one pass over held-out text. The result is a flat summary ``area/quantity`` with intervals
and definitions, and one record per passage. This module knows no files, no training and no reports.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ppo.config import Sampling
from ppo.generation import generate as ppo_generate
from rewards.bleu import Bleu

from . import extraction, memorization
from .along import right_along
from .depth import depth_metrics, depth_summary, lens_metrics, own_tokens
from .leak import leak_metrics
from .near import near_metrics
from .outputs import Continuation, bleu_statistics, continuations, greedy_metrics, sampled_metrics, texts
from .protocols import Decoder, Generate, Passage, check_passages, secrets_of, whole
from .quirks import open_unlearning_scores
from .secrets import HINTS, locate, run_columns, secret_columns
from .settings import Settings, define
from .summary import group_intervals, group_means, holdout_summary, membership_scores, membership_summary, signatures
from .teacher import TokenStatistics, teacher_force
from .writing import order_metrics, word_metrics, writing_intervals, writing_summary

Record = dict[str, Any]
GREEDY = Sampling(temperature=0.0)
EL_TOKENS = 10  # of an n-gram of extraction likelihood


@dataclass(frozen=True)
class Evaluation:
    """summary: metric -> value. intervals: metric -> [low, high], 95 %. definitions: metric -> what it means.

    by_place: "<group>/right" -> for each token of the suffix, the share of passages of which it is the argmax
    (:mod:`eval.along`). signatures: what exactly was measured. records: one dict per passage with id, group, texts and
    its own numbers (None for a number that does not exist). Everything is JSON.
    """

    summary: dict[str, float]
    intervals: dict[str, list[float]]
    definitions: dict[str, str]
    signatures: dict[str, str]
    settings: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    by_place: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "records"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], records: Sequence[Record] = ()) -> Evaluation:
        """The inverse of :meth:`to_dict`."""
        return cls(**values, records=list(records))


def evaluate(
    model: nn.Module,
    tokenizer: Decoder,
    passages: Sequence[Passage],
    holdout: Sequence[Sequence[int]] = (),
    *,
    original: nn.Module | None = None,
    baseline: Mapping[str, float] | None = None,
    known: Sequence[Sequence[int]] = (),
    settings: Settings = Settings(),
    generate: Generate = ppo_generate,
) -> Evaluation:
    """Measure ``model`` on ``passages`` (any groups) and on ``holdout`` token sequences.

    original   the model before unlearning, under which the outputs have an NLL and an order; None: it is not measured
    baseline   the original's own summary, whose level the writing is held against; None: not, unless ``model`` is the
               original itself
    known      more texts whose words are words, as token ids: the text to keep
    generate   how text is decoded; pass a decoding defence here to measure it

    ValueError for an empty list of passages, a passage without prefix or suffix, or an id that occurs twice.
    """
    check_passages(passages)
    heads = texts(tokenizer, passages)
    truths = [head["truth"] for head in heads]
    bleu = Bleu.of(truths)
    suffix, full = _teacher_passes(model, passages, settings)
    greedy = _greedy(model, tokenizer, passages, generate=generate, slots=settings.slots)
    integers = bleu_statistics(greedy, truths, bleu)
    own = own_tokens(passages, run=settings.shared_run)
    columns = [
        greedy_metrics(passages, greedy, truths, integers, bleu),
        [_teacher_metrics(p, s, f, settings) for p, s, f in zip(passages, suffix, full, strict=True)],
        [depth_metrics(p, s, mask, settings) for p, s, mask in zip(passages, suffix, own, strict=True)],
    ]
    if settings.lens_tokens:
        columns.append(lens_metrics(model, passages, own, settings))
    if settings.near_passes:
        bounds = {"passes": settings.near_passes, "most": settings.near_tokens, "batch_tokens": settings.batch_tokens}
        columns.append(near_metrics(model, passages, sampling=settings.sampler(), **bounds))
    sampled = None
    if settings.num_samples:
        sampled = continuations(
            model, tokenizer, passages, settings.sampler(), generate=generate, seed=settings.seed, slots=settings.slots
        )
        columns.append(sampled_metrics(passages, sampled, truths, bleu))
    columns += _verbatim(
        tokenizer, passages, greedy, truths, suffix, sampled, hints=settings.hints, has_probabilities=True
    )
    others = [*(head["prompt"] for head in heads), *(tokenizer.decode(ids) for ids in (*holdout, *known))]
    columns.append(word_metrics([output.text for output in greedy], [*truths, *others]))
    if original is not None:
        columns.append(order_metrics(original, tokenizer, passages, greedy, settings))
    if settings.el_stride:
        columns.append(_extraction_likelihood(model, passages, settings, generate))
    scores = membership_scores(passages, full, tokenizer, share=settings.min_k_share)
    theirs = [open_unlearning_scores(s, len(p.suffix), t) for s, p, t in zip(suffix, passages, truths, strict=True)]
    records = _records(heads, greedy, [*columns, scores, theirs])
    quantities = list(dict.fromkeys(name for column in columns for name in column[0]))
    found, spread = membership_summary(passages, scores, settings)
    utility, utility_spread = holdout_summary(model, tokenizer, holdout, settings)
    summary = group_means(records, quantities, integers)
    intervals = group_intervals(records, quantities, integers, settings)
    gaps, gap_spread = depth_summary(summary, intervals, settings)
    summary, intervals = summary | gaps | utility | found, intervals | gap_spread | utility_spread | spread
    if baseline is not None or original is model:
        level = summary if baseline is None else baseline
        summary |= writing_summary(records, summary, level)
        intervals |= writing_intervals(records, summary, level, seed=settings.seed, resamples=settings.resamples)
    definitions = define(summary, settings)
    along = right_along([p.group for p in passages], _right(passages, suffix))
    return Evaluation(summary, intervals, definitions, signatures(bleu, settings), settings.to_dict(), records, along)


def probe(
    model: nn.Module,
    tokenizer: Decoder,
    passages: Sequence[Passage],
    holdout: Sequence[Sequence[int]] = (),
    *,
    slots: int = 64,
    generate: Generate = ppo_generate,
) -> dict[str, float]:
    """A quick evaluation during training: one greedy pass and held-out perplexity, named as in :func:`evaluate`.

    Where a passage has secrets, a teacher-forced pass looks for them after hints as well.
    """
    check_passages(passages)
    heads = texts(tokenizer, passages)
    greedy = _greedy(model, tokenizer, passages, generate=generate, slots=slots)
    truths = [head["truth"] for head in heads]
    bleu = Bleu.of(truths)
    integers = bleu_statistics(greedy, truths, bleu)
    columns = [greedy_metrics(passages, greedy, truths, integers, bleu)]
    suffix = _suffix_pass(model, passages, Settings()) if any(map(secrets_of, passages)) else []
    columns += _verbatim(tokenizer, passages, greedy, truths, suffix)
    quantities = [name for column in columns for name in column[0] if name != "secret_emitted"]  # it needs samples
    means = group_means(_records(heads, greedy, columns), quantities, integers)
    return means | holdout_summary(model, tokenizer, holdout, Settings(resamples=1))[0]


def _verbatim(
    tokenizer: Decoder,
    passages: Sequence[Passage],
    greedy: Sequence[Continuation],
    truths: Sequence[str],
    suffix: Sequence[TokenStatistics],
    sampled: Sequence[Sequence[Continuation]] | None = None,
    *,
    hints: Sequence[int] = HINTS,
    has_probabilities: bool = False,
) -> list[list[Record]]:
    """The columns of the longest verbatim run, and, where any passage has one, of the secrets (and leaks of them)."""
    columns: list[list[Record]] = [list(run_columns(passages, greedy, truths, sampled))]
    if any(map(secrets_of, passages)):
        right = _right(passages, suffix)
        secrets = [locate(p, tokenizer) for p in passages]
        logprobs = [s.sampler_logprobs[-len(p.suffix) :] for p, s in zip(passages, suffix, strict=True)]
        more = {"logprobs": logprobs} if has_probabilities else {}
        columns.append(list(secret_columns(secrets, greedy, right, sampled, hints=hints, **more)))
    return columns


def _right(passages: Sequence[Passage], suffix: Sequence[TokenStatistics]) -> list[np.ndarray]:
    """Which suffix tokens of each passage are the argmax, bool [suffix length] each."""
    return [s.is_right[-len(p.suffix) :] for p, s in zip(passages, suffix, strict=True)]


def _greedy(
    model: nn.Module, tokenizer: Decoder, passages: Sequence[Passage], *, generate: Generate, slots: int
) -> list[Continuation]:
    return [c[0] for c in continuations(model, tokenizer, passages, GREEDY, generate=generate, slots=slots)]


def _records(
    heads: Sequence[Record], greedy: Sequence[Continuation], columns: Sequence[Sequence[Record]]
) -> list[Record]:
    """One flat dict per passage, with its texts and all its numbers."""
    records = []
    for head, output, *rows in zip(heads, greedy, *columns, strict=True):
        record = {**head, "output": output.text}
        for row in rows:
            record.update(row)
        records.append(record)
    return records


def _teacher_passes(
    model: nn.Module, passages: Sequence[Passage], settings: Settings
) -> tuple[list[TokenStatistics], list[TokenStatistics]]:
    """Statistics of the suffixes given the prefix, and of the whole passages.

    A passage without a pre-prefix needs one pass only.
    """
    full = _forced(model, [whole(p) for p in passages], [1] * len(passages), settings, has_moments=True)
    suffix = list(full)
    chosen = [i for i, p in enumerate(passages) if p.pre_prefix]
    for i, statistics in zip(
        chosen, _suffix_pass(model, [passages[i] for i in chosen], settings, has_moments=True), strict=True
    ):
        suffix[i] = statistics
    return suffix, full


def _suffix_pass(
    model: nn.Module, passages: Sequence[Passage], settings: Settings, *, has_moments: bool = False
) -> list[TokenStatistics]:
    """Statistics of the suffixes given the prefix."""
    sequences, starts = [[*p.prefix, *p.suffix] for p in passages], [len(p.prefix) for p in passages]
    return _forced(model, sequences, starts, settings, has_moments=has_moments)


def _forced(
    model: nn.Module, sequences: list[list[int]], starts: list[int], settings: Settings, *, has_moments: bool
) -> list[TokenStatistics]:
    return teacher_force(
        model,
        sequences,
        starts=starts,
        sampling=settings.sampler(),
        batch_tokens=settings.batch_tokens,
        chunk_tokens=settings.chunk_tokens,
        has_moments=has_moments,
    )


def _teacher_metrics(passage: Passage, suffix: TokenStatistics, full: TokenStatistics, settings: Settings) -> Record:
    """Numbers of one passage, from the statistics of its suffix given the prefix and of the whole passage."""
    size, more = len(passage.suffix), settings.more_tokens
    right, logprobs = suffix.is_right[-size:], suffix.logprobs[-size:].astype(np.float64)
    log_pz = extraction.sequence_logprob(suffix.sampler_logprobs[-size:])
    rest = right[more:]
    return {
        "exact_long": float(extraction.is_exact(full.is_right[-size:])),
        "discoverable": float(extraction.is_discoverable(log_pz, n=settings.discoverable_n, p=settings.discoverable_p)),
        "sequence_p": math.exp(log_pz),
        **leak_metrics(log_pz),
        "extraction_strength": extraction.extraction_strength(right),
        "ma": memorization.memorization_accuracy(full.is_right[full.start :]),
        "ma_suffix": memorization.memorization_accuracy(right),
        f"accuracy_after_{more}": memorization.memorization_accuracy(rest) if len(rest) else None,
        "true_token_p": float(np.exp(logprobs).mean()),
        "nll_suffix": float(-logprobs.mean()),
    }


def _extraction_likelihood(
    model: nn.Module, passages: Sequence[Passage], settings: Settings, generate: Generate
) -> list[Record]:
    """EL_10 of the passages that are asked for. A RuntimeWarning counts those that are too short to have one."""
    wanted = _first_of_each_group(passages, settings.el_passages)
    chosen = [i for i in wanted if len(whole(passages[i])) > EL_TOKENS]
    if len(chosen) < len(wanted):
        warnings.warn(
            f"{len(wanted) - len(chosen)} of {len(wanted)} passages have at most {EL_TOKENS} tokens: they have no "
            "extraction likelihood, and its means leave them out",
            RuntimeWarning,
            stacklevel=3,
        )
    written = memorization.continue_from_starts(
        model,
        [whole(passages[i]) for i in chosen],
        n=EL_TOKENS,
        stride=settings.el_stride,
        slots=settings.slots,
        generate=generate,
    )
    found: list[Record] = [{"el_10": None, "el_10_generated": None} for _ in passages]
    for i, pairs in zip(chosen, written, strict=True):
        found[i] = {
            "el_10": memorization.mean_overlap(pairs, EL_TOKENS),
            "el_10_generated": memorization.mean_overlap(pairs, EL_TOKENS, divisor="generated"),
        }
    return found


def _first_of_each_group(passages: Sequence[Passage], count: int | None) -> list[int]:
    """Indices of the first ``count`` passages of every group; None: of all passages."""
    seen: Counter[str] = Counter()
    places = []
    for place, passage in enumerate(passages):
        seen[passage.group] += 1
        if count is None or seen[passage.group] <= count:
            places.append(place)
    return places
