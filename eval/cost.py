"""What a method costs: seconds, and floating-point operations estimated from the tokens that passed the model.

A token costs 2 N operations in a forward pass and 6 N in a training step (forward, plus a backward pass of twice that
cost), where N is the number of parameters (Kaplan et al. 2020, sec. 2.1). The estimate excludes attention over the
context, everything but matrix products, and what a decoding defence adds to each token. Generating a response costs the
tokens of its prompt and its own. This module counts and runs nothing.
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
    """Tokens that passed the model without a gradient, and with one. ``+`` adds them, ``*`` multiplies them."""

    forward: float = 0.0
    trained: float = 0.0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.forward + other.forward, self.trained + other.trained)

    def __mul__(self, times: float) -> Tokens:
        return Tokens(self.forward * times, self.trained * times)


@dataclass(frozen=True)
class Cost:
    """``seconds`` of wall-clock time, tokens, and the number of parameters of the model that they passed."""

    seconds: float
    tokens: Tokens
    parameters: int

    @property
    def flops(self) -> float:
        """2 N per token without a gradient, 6 N per token with one."""
        return self.parameters * (2 * self.tokens.forward + 6 * self.tokens.trained)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self) | {"flops": self.flops}


def count_parameters(model: nn.Module) -> int:
    """Number of parameters. Tied parameters count once."""
    return sum(p.numel() for p in model.parameters())


def retain_tokens(weight: float, kind: str, tokens: float) -> Tokens:
    """The tokens of a retain loss on ``tokens``: trained, and with "kl" also passed through the original model."""
    return Tokens(tokens if kind == "kl" else 0.0, tokens) if weight else Tokens()


def baseline_tokens(
    pairs: Sequence[Pair], training: Training, log: StepLog, *, asks_once: bool = False, asks_always: bool = False
) -> Tokens:
    """The tokens of a training-time baseline: the logged steps, each over all passages or over a batch of them.

    asks_once    the original's NLL is measured before the first step (NPO)
    asks_always  the original runs too at every step (distillation)
    """
    mean = sum(len(context) + len(tokens) for context, tokens in pairs) / len(pairs)
    size = len(pairs) if training.batch is None else min(training.batch, len(pairs))
    step = Tokens(size * mean if asks_always else 0.0, size * mean)
    kept = training.retain_sequences * training.retain_tokens
    step = step + retain_tokens(training.retain_weight, training.retain_loss, kept)
    return step * len(log) + Tokens(len(pairs) * mean if asks_once else 0.0)


def ppo_tokens(config: Config, rows: Sequence[Mapping[str, float]], *, prompt_length: float) -> Tokens:
    """The tokens of PPO: every step's rollout, its reference if KL is penalised, and its updates with retain batches.

    ``rows``: rows of metrics.jsonl, for the lengths of the responses and the number of minibatches.
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
