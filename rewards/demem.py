"""The rewards of DeMem by name: the paper's, and our own.

The paper's reward is minus a similarity to the true suffix, nothing else. Empty, looping or garbled text wins it, and
it goes on paying below the similarity that a model reaches by chance. Our recipe closes both loopholes: guards and a
repetition term penalise broken text, and ``bleu_floor`` stops the pay at chance. This module only composes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from ppo.types import Sample

from .bertscore import BertScore, BertScoreMeasure
from .bleu import Accrual, Bleu, BleuMeasure, Decode, DenseBleuMeasure
from .combine import Reward, Term
from .fluency import FluencyBand, ModelNLL
from .guards import ONLY_EMPTY, Guards
from .repetition import repeated_share, repeats
from .samples import content_ids, has_truth, truth_ids
from .spans import SpansMeasure


def paper(encoder: BertScore | None = None, *, guards: Guards | None = ONLY_EMPTY, tokenize: str = "13a") -> Reward:
    """-|BERTScore F1| (Kassem et al. 2023, sec. 3.2), or -BLEU/100 without an encoder.

    Empty text gets the worst score. The published code forgot that; ``guards=None`` is the published code.
    ``tokenize``: that of :class:`rewards.bleu.Bleu`.
    """
    if encoder is None:
        bleu = Bleu(tokenize=tokenize)
        return Reward((Term("bleu", -1.0, BleuMeasure(bleu), signature=bleu.signature),), guards)
    return Reward((Term("bertscore", -1.0, BertScoreMeasure(encoder), signature=encoder.signature),), guards)


def spans() -> Reward:
    """-1 for a response that emits a forbidden span of its row, 0 for others (:mod:`rewards.spans`); empty text: -1."""
    measure = SpansMeasure()
    return Reward((Term("spans", -1.0, measure, signature=measure.signature),), ONLY_EMPTY)


def default(
    *,
    bleu_weight: float = 1.0,
    bleu_floor: float = 0.0,
    repetition_weight: float = 0.5,
    repetition_order: int = 2,
    dense: Literal["no", "words", "tokens"] = "no",
    decode: Decode | None = None,
    accrual: Accrual = "linear",
    guards: Guards | None = Guards(),
    worst: float | None = None,
    tokenize: str = "13a",
) -> Reward:
    """-bleu_weight * (BLEU above the floor)/100 - repetition_weight * (repeated n-grams beyond the truth's), guarded.

    bleu_weight        weight of BLEU/100 against the true suffix
    bleu_floor         0 … 100, the BLEU that the model reaches by chance; the policy gains nothing below it
    repetition_weight  weight of the share of repeated n-grams in excess of the true suffix's; 0 drops the term
    repetition_order   n of those n-grams
    dense              "no": one score a response. "words": each token gets the word BLEU that it adds; this needs
                       ``decode`` (ids to text without special tokens). "tokens": each token gets the BLEU over token
                       ids that it adds. With "words" and "tokens" the repetition term is dense too
    accrual            how a dense BLEU grows, see :func:`rewards.bleu.prefix_scores`
    guards             which responses get the worst score; None: none do
    worst              the score of a guarded response; None: the lowest sum that the terms can reach
    tokenize           sacrebleu's tokeniser: see :func:`rewards.scripts.tokenizer_of` for text without spaces
    """
    if dense == "words" and decode is None:
        raise ValueError("dense='words' needs decode, a function from token ids to text; or use dense='tokens'")
    bleu = Bleu(tokenize=tokenize)
    top = (100 - bleu_floor) / 100
    signature = f"{bleu.signature}|floor:{bleu_floor:g}"
    if dense == "no":
        term = Term("bleu", -bleu_weight, BleuMeasure(bleu, bleu_floor), 0.0, top, signature)
    else:
        measure = DenseBleuMeasure(decode if dense == "words" else None, bleu, accrual, bleu_floor)
        term = Term("bleu", -bleu_weight, measure, 0.0, top, f"{signature}|dense:{dense}|accrual:{accrual}")
    if repetition_weight == 0:
        return Reward((term,), guards, worst)
    repetition = RepetitionMeasure(repetition_order, is_dense=dense != "no")
    return Reward(
        (term, Term("repetition", -repetition_weight, repetition, signature=repetition.signature)), guards, worst
    )


def with_fluency(reward: Reward, original: nn.Module, *, weight: float, low: float, high: float) -> Reward:
    """The reward minus ``weight`` for every nat per token that a response's NLL lies outside [low, high].

    The NLL is measured under ``original``, a frozen copy of the model before unlearning.
    """
    band = FluencyBand(ModelNLL(original), low, high)
    return replace(reward, terms=(*reward.terms, Term("fluency", -weight, band, 0.0, band.cap, band.signature)))


@dataclass(frozen=True)
class RepetitionMeasure:
    """Share of repeated n-grams of the response (token ids without EOS) in excess of the true suffix's, in [0, 1].

    With ``is_dense``, this share is divided evenly among the tokens that end a repeated n-gram.
    """

    order: int = 2
    is_dense: bool = False

    @property
    def signature(self) -> str:
        """What is counted, in one line."""
        return f"repetition|n:{self.order}|unit:token|excess-over-truth|dense:{'yes' if self.is_dense else 'no'}"

    def __call__(self, samples: Sequence[Sample]) -> list[float] | list[list[float]]:
        excesses = [self._excess(sample) for sample in samples]
        if not self.is_dense:
            return excesses
        return [self._spread(sample, excess) for sample, excess in zip(samples, excesses, strict=True)]

    def _excess(self, sample: Sample) -> float:
        truth = truth_ids(sample) if has_truth(sample) else ()
        return max(0.0, repeated_share(content_ids(sample), self.order) - repeated_share(truth, self.order))

    def _spread(self, sample: Sample, excess: float) -> list[float]:
        flags = repeats(content_ids(sample), self.order)
        share = excess / max(sum(flags), 1)
        return [share * flag for flag in flags] + [0.0] * (len(sample.ids) - len(flags))
