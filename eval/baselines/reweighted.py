"""WGA and SatImp: gradient ascent in which every token has a weight of its own, made of the model's probability of it.

Ascent goes on pushing tokens that are long forgotten, because the gradient of -NLL grows as p falls. A weight that
falls with p takes that away. p is the model's own, without a gradient through the weight:

    WGA     -p^b NLL                 (Wang et al., ICLR 2025, "Rethinking LLM Unlearning Objectives")
    SatImp  -p^b1 (1 - p)^b2 NLL     (Yang et al., ICML 2025, "Exploring Criteria of Loss Reweighting to Enhance LLM
                                      Unlearning": saturation p^b1, importance (1 - p)^b2)

Both are the formulas of open-unlearning (``compute_wga_loss``, ``compute_satimp_loss``), SatImp's by its authors. Those
take the mean over the tokens of a batch; here it is the mean over the tokens of each passage, then over passages. A
loss on text to keep goes beside both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppo.lm.backbone import Backbone

from ..protocols import Passage
from .tokenwise import PerToken, token_loss
from .training import StepLog, Stop, Training, pairs_of, train

DEFAULT = Training(retain_weight=1.0, retain_loss="kl", learning_rate=1e-4)


def unlearn_wga(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    beta: float = 1.0,
    stop: Stop | None = None,
) -> StepLog:
    """WGA. Changes ``model``; returns the log. ValueError unless ``beta`` is at least 0 (0: gradient ascent)."""
    if not beta >= 0:
        raise ValueError(f"beta={beta!r} must be at least 0: it is a power of a probability")
    weighted = partial(weighted_ascent, saturation=beta, importance=0.0)
    return _unlearn(model, passages, retain, weighted, generator=generator, training=training, stop=stop)


def unlearn_satimp(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    beta1: float = 5.0,
    beta2: float = 1.0,
    stop: Stop | None = None,
) -> StepLog:
    """SatImp, with its authors' powers as defaults. Changes ``model``; returns the log. ValueError for a power < 0."""
    if not (beta1 >= 0 and beta2 >= 0):
        raise ValueError(f"beta1={beta1!r} and beta2={beta2!r} must be at least 0: they are powers of probabilities")
    weighted = partial(weighted_ascent, saturation=beta1, importance=beta2)
    return _unlearn(model, passages, retain, weighted, generator=generator, training=training, stop=stop)


def weighted_ascent(logits: Tensor, truths: Tensor, *, saturation: float, importance: float) -> Tensor:
    """-p^saturation (1 - p)^importance NLL [N], no gradient through the weights. Logits [N, V], truths [N]."""
    nll = cross_entropy(logits, truths, reduction="none")
    p = (-nll).exp().detach()
    return -(p**saturation) * (1 - p) ** importance * nll


def _unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    per_token: PerToken,
    *,
    generator: torch.Generator,
    training: Training,
    stop: Stop | None,
) -> StepLog:
    pairs = pairs_of(passages, training.scope)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        return token_loss(backbone, [pairs[i] for i in indices], per_token, chunk_tokens=training.chunk_tokens)

    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop)
