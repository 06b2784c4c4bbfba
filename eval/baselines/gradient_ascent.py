"""UL: ascend the NLL of the passages to forget (Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks").

The paper's setting: all 200 tokens, Adam with learning rate 5e-5 and betas (0.9, 0.98), the whole forget set as one
batch, at most 20 updates, until EL_10 and MA are both below their means on unseen text. It has no retain loss, and its
loss has no lower bound.

Gradient difference adds descent on retain text to this ascent (Liu et al. 2022; Maini et al. 2024, TOFU).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ppo.lm.backbone import Backbone

from ..memorization import extraction_likelihood, memorization_accuracy
from ..protocols import Passage, whole
from ..teacher import teacher_force
from .training import StepLog, Stop, Training, nll_of, pairs_of, train

MAX_EL_10 = 0.0499
MAX_MA = 0.2994

PAPER = Training(scope="whole", max_grad_norm=None)
DIFFERENCE = Training(scope="whole", retain_weight=1.0)


def unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]] = (),
    *,
    generator: torch.Generator,
    training: Training = PAPER,
    stop: Stop | None = None,
) -> StepLog:
    """Gradient ascent: minimise -NLL, mean over the tokens of each passage. Changes ``model``; returns the log."""
    pairs = pairs_of(passages, training.scope)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        return ascent_loss(nll_of(pairs, backbone, indices, training.chunk_tokens), _sizes(pairs, indices))

    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop)


def unlearn_with_difference(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DIFFERENCE,
    stop: Stop | None = None,
) -> StepLog:
    """Gradient difference: ascent on the passages, and ``retain_weight`` times descent on retain text."""
    if training.retain_weight == 0:
        raise ValueError("gradient difference needs retain_weight > 0; without retain text use gradient ascent")
    return unlearn(model, passages, retain, generator=generator, training=training, stop=stop)


def ascent_loss(nll: Tensor, sizes: Tensor) -> Tensor:
    """-sum over passages of (summed NLL / tokens); nll, sizes [B] -> scalar."""
    return -(nll / sizes.to(nll.device)).sum()


def _sizes(pairs: Sequence[tuple[list[int], list[int]]], indices: list[int]) -> Tensor:
    return torch.tensor([float(len(pairs[i][1])) for i in indices], dtype=torch.float32, device="cpu")


def paper_stop(model: nn.Module, passages: Sequence[Passage], *, stride: int = 10, slots: int = 64) -> Stop:
    """The paper's stopping rule: mean EL_10 < 0.0499 and mean MA < 0.2994 over the forget set.

    EL_10 uses every ``stride``-th start. It is computed only when MA is low enough, because it is expensive.
    """
    sequences = [whole(p) for p in passages]

    def is_forgotten(steps: int) -> bool:
        accuracies = [memorization_accuracy(s.is_right[s.start :]) for s in teacher_force(model, sequences)]
        if np.mean(accuracies) >= MAX_MA:
            return False
        return bool(np.mean(extraction_likelihood(model, sequences, stride=stride, slots=slots)) < MAX_EL_10)

    return is_forgotten
