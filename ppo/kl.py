"""KL to the reference: three estimators from log-probs of sampled tokens, and two controllers of its coefficient.

Knows nothing about models; a controller knows only how far the policy went and over how many sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .config import Config, KLEstimator


def estimate_kl(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, same shape as the inputs.

    With d = log pi(a) - log pi_ref(a) and a ~ pi (Schulman 2020, "Approximating KL divergence"):
    k1 = d (unbiased, may be negative), k2 = d^2 / 2 (biased, its gradient is that of the KL),
    k3 = exp(-d) - 1 + d (unbiased, never negative).
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"estimator={estimator!r} must be 'k1', 'k2' or 'k3'")


@dataclass
class FixedKL:
    """A constant coefficient."""

    coef: float

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Nothing to adapt; the same call as :class:`AdaptiveKL`."""


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
        """Move the coefficient after a step over ``num_sequences`` with the given mean KL."""
        error = min(max(kl_per_sequence / self.target_kl_per_sequence - 1, -0.2), 0.2)
        self.coef *= 1 + error * num_sequences / self.horizon_sequences


KLController = FixedKL | AdaptiveKL


@dataclass
class KLPenalty:
    """The KL penalty of a run: how KL is estimated, where it acts, and what moves its coefficient."""

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
        """What KL costs in the reward: 0 where it is part of the loss."""
        return self.coef if self.acts_as == "reward" else 0.0

    def per_token(self, logprobs: Tensor, ref_logprobs: Tensor | None) -> Tensor:
        """The estimate for every token, nats [B, T]; 0 without a reference."""
        if ref_logprobs is None:
            return torch.zeros_like(logprobs)
        return estimate_kl(logprobs, ref_logprobs, estimator=self.estimator)

    def update(self, kl: Tensor) -> None:
        """Move the coefficient after a step with this KL a token, nats [B, T]."""
        self.controller.update(float(kl.sum(dim=1).mean()), len(kl))

    def take(self, coef: float) -> None:
        """Go on from a checkpoint's coefficient."""
        self.controller.coef = coef
