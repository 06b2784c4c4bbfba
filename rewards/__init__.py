"""Rewards for language models: text and token measures, guards, combinations, and DeMem's presets.

A reward is a callable ``list[ppo.types.Sample] -> list[float]`` (or token rewards ``list[list[float]]``). A sample's
row holds the true suffix, as "suffix" (text) and as "suffix_ids" (token ids). The presets are ``rewards.demem.paper``
and ``rewards.demem.default``.
"""

from .bertscore import BertScore, BertScoreMeasure
from .bleu import Bleu, BleuMeasure, DenseBleuMeasure, n_bleu
from .combine import Reward, Scored, Term
from .counterfactual import CounterfactualReference
from .demem import RepetitionMeasure
from .edit import edit_similarity, normalized_distances
from .fluency import FluencyBand, ModelNLL, continuation_nll
from .guards import ONLY_EMPTY, Guards
from .repetition import distinct_n, loop_share, repeated_share

__all__ = [
    "ONLY_EMPTY",
    "BertScore",
    "BertScoreMeasure",
    "Bleu",
    "BleuMeasure",
    "CounterfactualReference",
    "DenseBleuMeasure",
    "FluencyBand",
    "Guards",
    "ModelNLL",
    "RepetitionMeasure",
    "Reward",
    "Scored",
    "Term",
    "continuation_nll",
    "distinct_n",
    "edit_similarity",
    "loop_share",
    "n_bleu",
    "normalized_distances",
    "repeated_share",
]
