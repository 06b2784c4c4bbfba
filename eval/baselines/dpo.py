"""DPO as unlearning: the passage is the answer to lose, and an answer made by a rule is the one to win.

Rafailov et al. 2023, eq. 7, with y_w an alternative and y_l the true suffix after the same prefix:

    -(2/beta) log sigmoid(beta (log p(y_w)/p_ref(y_w) - log p(y_l)/p_ref(y_l)))

The factor 2/beta is that of NPO (Zhang et al. 2024), whose loss this becomes where nothing is to win; open-unlearning
has it, too. TOFU's version (Maini et al. 2024) wins a refusal. This module knows token ids; the alternatives come from
outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppo.lm.backbone import Backbone

from ..protocols import Passage
from .preference import check_beta
from .training import Pair, StepLog, Stop, Training, frozen_nll, nll_of, pairs_of, train

DEFAULT = Training(retain_weight=1.0, retain_loss="kl", learning_rate=1e-4)


def unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    alternatives: Sequence[Sequence[Sequence[int]]],
    generator: torch.Generator,
    training: Training = DEFAULT,
    beta: float = 0.1,
    stop: Stop | None = None,
) -> StepLog:
    """DPO with the given model as the reference. Changes ``model``; returns the log.

    ``alternatives``: for each passage the token ids of one or more answers that may take its suffix's place; each time
    that a passage comes up, ``generator`` draws one. ValueError for a passage without any, for another scope than
    "suffix" (both answers follow the same prefix), and for beta ≤ 0.
    """
    check_beta(beta)
    if training.scope != "suffix":
        raise ValueError(f"scope={training.scope!r} must be 'suffix': both answers follow the prefix")
    if len(alternatives) != len(passages) or not all(a and all(a) for a in alternatives):
        raise ValueError(f"{len(passages)} passages need one alternative or more each, of one token or more")
    losing = pairs_of(passages, training.scope)
    winning: list[Pair] = []
    places: list[range] = []
    for (context, _), options in zip(losing, alternatives, strict=True):
        places.append(range(len(winning), len(winning) + len(options)))
        winning += [(context, list(tokens)) for tokens in options]
    known, known_winning = frozen_nll(model, losing, training), frozen_nll(model, winning, training)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        draws = [int(torch.randint(len(places[i]), (), generator=generator, device="cpu")) for i in indices]
        drawn = [places[i][k] for i, k in zip(indices, draws, strict=True)]
        lost = nll_of(losing, backbone, indices, training.chunk_tokens)
        won = nll_of(winning, backbone, drawn, training.chunk_tokens)
        return dpo_loss(won, known_winning[drawn], lost, known[indices], beta=beta).sum()

    return train(model, len(losing), retain, forget_loss, training=training, generator=generator, stop=stop)


def dpo_loss(won: Tensor, reference_won: Tensor, lost: Tensor, reference_lost: Tensor, *, beta: float) -> Tensor:
    """-(2/beta) log sigmoid(beta ((NLL_ref - NLL)(y_w) - (NLL_ref - NLL)(y_l))) [B]; NLLs [B], summed over tokens."""
    return -2 / beta * logsigmoid(beta * ((reference_won - won) - (reference_lost - lost)))
