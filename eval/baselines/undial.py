"""UNDIAL: self-distillation with adjusted logits (Dong et al., NAACL 2025, arXiv 2402.10052).

The teacher is the original model with ``beta`` taken off the logit of the true token at every place; the loss is the
cross-entropy to that fixed distribution. So it has a minimum that is reached, unlike ascent. As beta → ∞ the target
becomes that of :mod:`eval.baselines.distillation`. The formula is open-unlearning's ``compute_undial_loss``; its
authors try beta 3, 10 and 30, and use no text to keep. Here the mean is over the tokens of each passage.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ppo.lm.backbone import Backbone

from ..protocols import Passage
from .tokenwise import token_loss
from .training import StepLog, Stop, Training, pairs_of, train

DEFAULT = Training(retain_weight=1.0, retain_loss="kl", learning_rate=1e-4)


def unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    beta: float = 10.0,
    stop: Stop | None = None,
) -> StepLog:
    """UNDIAL with the given model as the teacher. Changes ``model``; returns the log. ValueError unless beta > 0."""
    if not beta > 0:
        raise ValueError(f"beta={beta!r} must be above 0: it is taken off the logit of the true token")
    pairs = pairs_of(passages, training.scope)
    original = Backbone(copy.deepcopy(model).requires_grad_(False).eval())
    per_token = partial(undial_loss, beta=beta)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        chosen = [pairs[i] for i in indices]
        return token_loss(backbone, chosen, per_token, chunk_tokens=training.chunk_tokens, frozen=original)

    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop)


def undial_loss(logits: Tensor, original_logits: Tensor, truths: Tensor, *, beta: float) -> Tensor:
    """Cross-entropy [N] to softmax(original logits - beta at the true token). Logits [N, V], truths [N]."""
    taken_off = torch.zeros_like(original_logits).scatter(-1, truths.unsqueeze(-1), beta)
    target = torch.softmax(original_logits.detach() - taken_off, dim=-1)
    return -(target * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
