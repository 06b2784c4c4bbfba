"""The losses of the policy and of the critic, as sums over tokens divided by a count that the caller gives.

A minibatch is computed in microbatches. Each loss here is the sum over the microbatch divided by the token count of the
*minibatch*, so that the microbatches' gradients add up to the minibatch's exactly. The same holds for the statistics,
and where the count is one of responses.

Pure functions over [B, T] float32 tensors; nothing here knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .config import Config
from .kl import estimate_kl
from .policy_losses import loss_mean_of
from .types import Evaluation, PolicyLoss, Rollout


def ppo_loss(
    new: Evaluation,
    part: Rollout,
    config: Config,
    policy_loss: PolicyLoss,
    *,
    kl_coef: float,
    num_tokens: int,
    num_sequences: int,
    num_positive: int = 0,
    is_policy_waiting: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """policy + value_coef * value - entropy_coef * entropy, a scalar.

    Two terms more where the config asks for them: kl_coef * KL, and positive_coef * :func:`positive_loss`.

    ``new``: the training forward on a microbatch; ``part``: what the rollout says about it. ``num_tokens``,
    ``num_sequences``, ``num_positive``: actions, rows that have some, and actions of positive rows, in the whole
    minibatch. ``config.loss_mean`` is the mean of all of these losses but two: the critic's is over tokens, the
    positive one's over positive tokens. Statistics are named ``area/quantity`` and add up over microbatches.
    ``is_policy_waiting``: the loss is that of the critic alone; the statistics are as ever.
    """
    mask = part.generation.action_mask
    loss, own_statistics = policy_loss(new, part, num_tokens=num_tokens, num_sequences=num_sequences)
    mean = partial(loss_mean_of(config), mask=mask, num_tokens=num_tokens, num_sequences=num_sequences)
    entropy = new.entropy.detach().sum() / num_tokens
    statistics = {
        f"policy/{name}": x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float32, device="cpu")
        for name, x in own_statistics.items()
    }
    statistics |= ratio_statistics(new.logprobs, part.old_logprobs, mask, num_tokens=num_tokens)
    statistics |= {"policy/loss": loss.detach(), "policy/entropy": entropy}
    loss = loss - config.entropy_coef * mean(new.entropy)
    if config.has_critic:
        value, value_statistics = value_loss(
            new.values, part.old_values, part.returns, mask, clip=config.value_clip, num_tokens=num_tokens
        )
        loss = config.value_coef * value if is_policy_waiting else loss + config.value_coef * value
        statistics |= {f"value/{name}": x for name, x in value_statistics.items()} | {"value/loss": value.detach()}
    if config.kl_as == "loss" and part.ref_logprobs is not None:
        kl = mean(estimate_kl(new.logprobs, part.ref_logprobs, estimator=config.kl_estimator))
        loss = loss if is_policy_waiting else loss + kl_coef * kl
        statistics["kl/loss"] = kl.detach()
    if config.positive_coef > 0:
        positive = positive_loss(new.logprobs, positive_mask(part, config), num_positive=num_positive)
        loss = loss if is_policy_waiting else loss + config.positive_coef * positive
        statistics["policy/positive_loss"] = positive.detach()
    return loss, statistics


def positive_mask(rollout: Rollout, config: Config) -> Tensor:
    """The actions of responses whose raw score is above ``config.positive_score``, bool [B, T]."""
    is_positive = rollout.scores.to(rollout.old_logprobs.device) > config.positive_score
    return rollout.generation.action_mask & is_positive.unsqueeze(1)


def positive_loss(logprobs: Tensor, mask: Tensor, *, num_positive: int) -> Tensor:
    """-log pi of the tokens of good responses, their mean, a scalar; ``logprobs`` and ``mask`` [B, T].

    ``num_positive``: such tokens of the whole minibatch. Where it has none, the loss is 0. Good responses are imitated
    however small their advantage is. Source: VAPO, Yue et al. 2025, sec. 4.3
    (with a weight of 0.1).
    """
    return -(logprobs * mask).sum() / max(num_positive, 1)


@torch.no_grad()
def ratio_statistics(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, num_tokens: int) -> dict[str, Tensor]:
    """How far the policy is from the old one, under any loss: what the brakes and checks of an update go by.

    Means over ``num_tokens``: ``policy/approx_kl`` (k3 of old against new, nats per token), ``policy/ratio``, and
    ``policy/log_ratio`` (of its size, nats).
    """
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = torch.exp(log_ratio)
    return {
        "policy/approx_kl": ((ratio - 1 - log_ratio) * mask).sum() / num_tokens,
        "policy/ratio": (ratio * mask).sum() / num_tokens,
        "policy/log_ratio": log_ratio.abs().sum() / num_tokens,
    }


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None, num_tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the squared error to the returns, a scalar; with ``clip`` the worse of the plain and the clipped error.

    clipped value = old + clamp(value - old, ±clip). All tensors [B, T]. Statistic ``clip_fraction``: share of tokens on
    which the clip cuts the gradient. Source: OpenAI baselines ppo2; Huang et al. 2022, detail 9.
    """
    terms = value_terms(values, old_values, returns, clip=clip)
    error = terms.plain if clip is None else torch.maximum(terms.plain, terms.clipped)
    clip_fraction = (terms.is_cut * mask).sum() / num_tokens
    return 0.5 * (error * mask).sum() / num_tokens, {"clip_fraction": clip_fraction.detach()}


@dataclass(frozen=True)
class ValueTerms:
    """Values moved by no more than the clip, and squared errors without and with it, token by token, each [B, T].

    Without a clip the two errors are the same. ``is_beyond``: the value moved further than the clip; elsewhere both
    errors are equal up to rounding.
    """

    clipped_values: Tensor
    plain: Tensor
    clipped: Tensor
    is_beyond: Tensor

    @property
    def is_cut(self) -> Tensor:
        """Tokens on which the clip cuts the gradient."""
        return (self.clipped > self.plain) & self.is_beyond


def value_terms(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> ValueTerms:
    """Plain and clipped squared errors. The value loss is half the mean of the larger one."""
    plain = (values - returns) ** 2
    if clip is None:
        return ValueTerms(values, plain, plain, torch.zeros_like(plain, dtype=torch.bool))
    moved = values - old_values
    clipped_values = old_values + torch.clamp(moved, -clip, clip)
    return ValueTerms(clipped_values, plain, (clipped_values - returns) ** 2, moved.abs() > clip)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is a perfect critic, 0 no better than a constant.

    Returns 0 where the returns do not vary.
    """
    real_returns, real_values = returns[mask], values[mask]
    if real_returns.numel() < 2:
        return 0.0
    variance = real_returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1 - (real_returns - real_values).var(correction=0) / variance)
