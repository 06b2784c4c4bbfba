"""KL to the reference: three estimators from log-probs of sampled tokens, and two controllers of its coefficient.

This module knows nothing about models. A controller knows only the KL of a step and its number of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .config import Config, KLEstimator

K3_LIMIT = 20.0
"""Nats. exp of it is 5e8, which float32 holds with room for sums; exp of 89 is infinite."""


def estimate_kl(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, same shape as the inputs.

    With d = log pi(a) - log pi_ref(a) and a ~ pi (Schulman 2020, "Approximating KL divergence"):
    k1 = d (unbiased, may be negative), k2 = d^2 / 2 (biased; the mean of its gradient is the gradient of the KL),
    k3 = exp(-d) - 1 + d (unbiased, never negative).

    k3 takes d as at least -:data:`K3_LIMIT`: beyond it, where the policy gives a token almost no chance that the
    reference takes for granted (responses from elsewhere, a policy far off), it stays at about 5e8 and a KL loss gives
    no gradient. Without the limit one such token would make every mean infinite.
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "k3":
        difference = difference.clamp(min=-K3_LIMIT)
        return torch.expm1(-difference) + difference
    raise ValueError(f"estimator={estimator!r} must be 'k1', 'k2' or 'k3'")


@dataclass
class FixedKL:
    """A constant coefficient."""

    coef: float

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Do nothing. :class:`AdaptiveKL` has the same method."""


@dataclass
class AdaptiveKL:
    """Proportional controller that steers the KL *summed over a sequence* (nats) towards a target.

    e = clip(kl / target - 1, ±0.2);  coef *= 1 + e * num_sequences / horizon_sequences.
    Source: Ziegler et al. 2019, sec. 2.2.
    """

    coef: float
    target_kl_per_sequence: float
    horizon_sequences: int

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Move the coefficient after a step over ``num_sequences`` with the mean ``kl_per_sequence``, nats."""
        error = min(max(kl_per_sequence / self.target_kl_per_sequence - 1, -0.2), 0.2)
        self.coef *= 1 + error * num_sequences / self.horizon_sequences


KLController = FixedKL | AdaptiveKL


@dataclass
class KLPenalty:
    """The KL penalty of a run: how KL is estimated, where it acts, and what moves its coefficient.

    ``acts_as``: "reward" subtracts it from the token rewards, "loss" adds it to the loss.
    """

    controller: KLController
    estimator: KLEstimator = "k1"
    acts_as: Literal["reward", "loss"] = "reward"

    @classmethod
    def of(cls, config: Config) -> KLPenalty:
        """The penalty that a config asks for."""
        if config.kl_controller == "fixed" or config.kl_coef == 0:
            return cls(FixedKL(config.kl_coef), config.kl_estimator, config.kl_as)
        adaptive = AdaptiveKL(config.kl_coef, config.target_kl_per_sequence, config.kl_horizon_sequences)
        return cls(adaptive, config.kl_estimator, config.kl_as)

    @property
    def coef(self) -> float:
        """The coefficient as it is now."""
        return self.controller.coef

    @property
    def reward_coef(self) -> float:
        """The coefficient of KL in the token rewards: ``coef``, or 0 where KL is part of the loss."""
        return self.coef if self.acts_as == "reward" else 0.0

    def per_token(self, logprobs: Tensor, ref_logprobs: Tensor | None) -> Tensor:
        """Estimated KL of every token, nats [B, T]; 0 without a reference."""
        if ref_logprobs is None:
            return torch.zeros_like(logprobs)
        return estimate_kl(logprobs, ref_logprobs, estimator=self.estimator)

    def update(self, kl: Tensor) -> None:
        """Move the coefficient after a step. ``kl``: of its tokens, nats [B, T], 0 on padding."""
        self.controller.update(float(kl.sum(dim=1).mean()), len(kl))

    def take(self, coef: float) -> None:
        """Continue with the coefficient of a checkpoint."""
        self.controller.coef = coef
