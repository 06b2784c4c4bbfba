"""From scores to advantages: reward shaping, GAE, group-relative estimators, whitening.

Pure functions over [B, T] float32 (or float64) tensors with a bool mask; the response is right-padded and padding comes
out as 0. This module knows nothing about models or about how the numbers were sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import Config
from .lm.precision import as_statistics, statistics_dtype


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True positions of the mask, a scalar. ``x`` and ``mask`` [B, T]; an empty mask gives 0."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Biased variance (divides by n) over the True positions, a scalar."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over all real positions; ``shift_mean=False`` adds the mean back afterwards.

    x, mask [B, T] -> [B, T], 0 on padding. The variance is the biased one, as in OpenAI's lm-human-preferences:
    ``whiten([1.2, 1.3, …, 2.0], shift_mean=False)`` spans 0.0508 … 3.1492.
    """
    mean = masked_mean(x, mask)
    whitened = (x - mean) * torch.rsqrt(masked_variance(x, mask) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def place_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Token rewards that hold each sequence's score on its last real token (EOS counts) and 0 elsewhere.

    scores [B], mask [B, T] -> [B, T]. A sequence without a real token has nowhere to put its score: ValueError.

    Example: score 7, mask [1 1 1 0] -> [0 0 7 0].
    """
    lengths = mask.sum(dim=1)
    if bool((lengths == 0).any()):
        raise ValueError(f"sequence {int((lengths == 0).nonzero()[0])} has no response token to carry its score")
    rewards = torch.zeros(mask.shape, dtype=statistics_dtype(scores.dtype), device=mask.device)
    rewards[torch.arange(len(lengths), device=mask.device), lengths - 1] = as_statistics(scores)
    return rewards


def shape_rewards(token_rewards: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """r_t = (token reward)_t - kl_coef * kl_t on real tokens, 0 on padding. All [B, T].

    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", eq. 2.
    """
    return (token_rewards - kl_coef * kl) * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): advantages and returns, both [B, T].

    delta_t = r_t + gamma * V_{t+1} - V_t,   A_t = delta_t + gamma * lam * A_{t+1},   return_t = A_t + V_t.
    ``values[b, t]`` is V before token t; the episode ends with the last real token, cut or not, so V after it is 0.

    Example (gamma = lam = 1): rewards [0 0 1], values [.5 .5 .5] -> advantages [.5 .5 .5], returns [1 1 1].
    """
    deltas = td_errors(rewards, values, mask, gamma=gamma)
    advantages = torch.zeros_like(deltas)
    next_advantage = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        # Behind the last real token rewards and values are 0, so the recursion starts there by itself.
        next_advantage = (deltas[:, t] + gamma * lam * next_advantage) * mask[:, t]
        advantages[:, t] = next_advantage
    return advantages, (advantages + values) * mask


def td_errors(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """delta_t = r_t + gamma * V_{t+1} - V_t, [B, T]: what a token brought beyond what was expected before it."""
    values = values * mask
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return rewards + gamma * next_values - values


def group_relative(totals: Tensor, mask: Tensor, *, group_size: int, estimator: str) -> Tensor:
    """Advantages [B, T] from the comparison of the samples of one prompt; every token of a sequence gets the same.

    totals [B]: reward summed over each sequence, prompt-major (the ``group_size`` samples of a prompt are adjacent).
    "grpo": (x - group mean) / (group std + 1e-4), biased std (Shao et al. 2024, DeepSeekMath, sec. 4.1.2).
    "rloo": x - mean of the *other* samples (Ahmadian et al. 2024, eq. 7).
    Raises ValueError when B is no multiple of the group size or the group has one sample.
    """
    if group_size < 2 or totals.shape[0] % group_size != 0:
        raise ValueError(f"{totals.shape[0]} sequences do not form groups of {group_size} (at least 2 a group)")
    groups = totals.view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if estimator == "grpo":
        advantages = centred / (groups.std(dim=1, keepdim=True, correction=0) + 1e-4)
    elif estimator == "rloo":
        advantages = centred * group_size / (group_size - 1)  # x - (sum - x) / (n - 1)
    else:
        raise ValueError(f"estimator={estimator!r} must be 'grpo' or 'rloo'")
    return advantages.view(-1, 1) * mask


def estimate_advantages(rewards: Tensor, values: Tensor, mask: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """(rewards, advantages, returns), each [B, T], by the estimator and with the whitening that the config asks for.

    Whitening is over all real tokens of the step. Group-relative estimators have no critic, so their returns are 0.
    """
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    if config.advantage != "gae":
        totals = rewards.sum(dim=1)
        advantages = group_relative(totals, mask, group_size=config.samples_per_prompt, estimator=config.advantage)
        return rewards, advantages, torch.zeros_like(rewards)
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.gae_lambda)
    return rewards, (whiten(advantages, mask) if config.whiten_advantages else advantages), returns
