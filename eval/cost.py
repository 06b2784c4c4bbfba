"""What a method costs: seconds, and floating-point operations estimated from the tokens that passed the model.

A token costs 2 N operations in a forward pass and 6 N in a training step (forward, and backward at twice its price),
N being all parameters (Kaplan et al. 2020, sec. 2.1). Attention over the context is left out, so is everything that is
no matrix product, and what a decoding defence adds to each token. Generating a response costs its prompt's tokens and
its own. This module counts; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ppo.config import Config

from .baselines.training import Pair, StepLog, Training


@dataclass(frozen=True)
class Tokens:
    """Tokens that passed the model without a gradient, and with one. Sums with ``+``, repeats with ``*``."""

    forward: float = 0.0
    trained: float = 0.0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.forward + other.forward, self.trained + other.trained)

    def __mul__(self, times: float) -> Tokens:
        return Tokens(self.forward * times, self.trained * times)


@dataclass(frozen=True)
class Cost:
    """``seconds`` of wall clock, tokens, and the parameters that they passed."""

    seconds: float
    tokens: Tokens
    parameters: int

    @property
    def flops(self) -> float:
        """2 N a token without gradient, 6 N a token with one."""
        return self.parameters * (2 * self.tokens.forward + 6 * self.tokens.trained)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self) | {"flops": self.flops}


def count_parameters(model: nn.Module) -> int:
    """All parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def retain_tokens(weight: float, kind: str, tokens: float) -> Tokens:
    """A retain loss on ``tokens``: trained; under "kl" the original is asked about them as well."""
    return Tokens(tokens if kind == "kl" else 0.0, tokens) if weight else Tokens()


def baseline_tokens(
    pairs: Sequence[Pair], training: Training, log: StepLog, *, asks_once: bool = False, asks_always: bool = False
) -> Tokens:
    """A training-time baseline: its steps, as many as the log has, over all of the passages or a batch of them.

    asks_once    the original's NLL is measured before the first step (NPO)
    asks_always  the original is run beside the model at every step (distillation)
    """
    mean = sum(len(context) + len(tokens) for context, tokens in pairs) / len(pairs)
    size = len(pairs) if training.batch is None else min(training.batch, len(pairs))
    step = Tokens(size * mean if asks_always else 0.0, size * mean)
    kept = training.retain_sequences * training.retain_tokens
    step = step + retain_tokens(training.retain_weight, training.retain_loss, kept)
    return step * len(log) + Tokens(len(pairs) * mean if asks_once else 0.0)


def ppo_tokens(config: Config, rows: Sequence[Mapping[str, float]], *, prompt_length: float) -> Tokens:
    """PPO: every step's rollout, its reference where there is one, and its epochs with their retain batches.

    ``rows``: metrics.jsonl, for the lengths of the responses and the minibatches that were done.
    """
    total = Tokens()
    kept = config.retain_sequences * config.retain_tokens
    for row in rows:
        rollout = config.sequences_per_step * (prompt_length + row["response/length_mean"])
        total = total + Tokens(rollout * (2 if config.kl_coef else 1), 0.0)
        minibatches = row["update/minibatches"]
        trained = Tokens(0.0, rollout * config.minibatch / config.sequences_per_step)
        total = total + (trained + retain_tokens(config.retain_coef, config.retain_loss, kept)) * minibatches
    return total
