"""NPO and SimNPO: forgetting as preference optimisation with negative examples only.

Both losses are bounded below, unlike that of gradient ascent. NPO (Zhang et al. 2024, "Negative Preference
Optimization", eq. 3) uses the summed NLL: -(2/beta) log sigmoid(beta (NLL - NLL_ref)). As beta -> 0 its gradient
becomes that of gradient ascent. SimNPO (Fan et al. 2024, "Simplicity Prevails", eq. 4) uses the NLL per token, and a
margin in place of the reference: -(2/beta) log sigmoid(beta (NLL/|y| - delta)).

The NLL grows while the passage is forgotten, so the loss falls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppo.lm.backbone import Backbone

from ..protocols import Passage
from .training import StepLog, Stop, Training, frozen_nll, nll_of, pairs_of, train

DEFAULT = Training(retain_weight=1.0, learning_rate=1e-5)


def unlearn_npo(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    beta: float = 0.1,
    stop: Stop | None = None,
) -> StepLog:
    """NPO with the given model as reference, whose NLL is measured once. Changes ``model``; returns the log."""
    check_beta(beta)
    pairs = pairs_of(passages, training.scope)
    reference = frozen_nll(model, pairs, training)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        return npo_loss(nll_of(pairs, backbone, indices, training.chunk_tokens), reference[indices], beta=beta)

    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop)


def unlearn_simnpo(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    beta: float = 2.5,
    delta: float = 0.0,
    stop: Stop | None = None,
) -> StepLog:
    """SimNPO. Changes ``model``; returns the log."""
    check_beta(beta)
    pairs = pairs_of(passages, training.scope)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        sizes = torch.tensor([float(len(pairs[i][1])) for i in indices], dtype=torch.float32, device="cpu")
        return simnpo_loss(nll_of(pairs, backbone, indices, training.chunk_tokens), sizes, beta=beta, delta=delta)

    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop)


def npo_loss(nll: Tensor, reference_nll: Tensor, *, beta: float) -> Tensor:
    """Sum over passages of -(2/beta) log sigmoid(beta (NLL - NLL_ref)); nll, reference_nll [B], summed over tokens."""
    return (-2 / beta * logsigmoid(beta * (nll - reference_nll))).sum()


def simnpo_loss(nll: Tensor, sizes: Tensor, *, beta: float, delta: float) -> Tensor:
    """Sum over passages of -(2/beta) log sigmoid(beta (NLL/|y| - delta)); nll [B] summed over ``sizes`` [B] tokens."""
    return (-2 / beta * logsigmoid(beta * (nll / sizes.to(nll.device) - delta))).sum()


def check_beta(beta: float) -> None:
    """ValueError unless beta is positive."""
    if not beta > 0:
        raise ValueError(f"beta={beta!r} must be above 0 (as beta goes to 0, NPO becomes gradient ascent)")
