"""From scores to advantages: reward shaping, GAE, group-relative estimators, whitening.

Pure functions over [B, T] float32 (or float64) tensors with a bool mask of the actions, which are the tokens that the
policy chose. Everything else comes out as 0: padding, and what an environment wrote. This module knows nothing about
models or about how the numbers were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .config import Config
from .lm.precision import as_float64, as_statistics, statistics_dtype
from .types import AdvantageFn, Sample


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True positions of the mask, a scalar. ``x`` and ``mask`` [B, T]; an empty mask gives 0."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Biased variance (divides by n) over the True positions, a scalar."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


ROUNDING = 4
"""Numbers that differ by at most so many units of rounding (epsilon of their type times their size) are equal here.

A score that was computed twice, in another order, and then rounded to the type of the statistics is off by one unit on
each side; a sum of it with rewards of 0 and the mean of the group add one each. Adam moves a weight by the full
learning rate whatever the size of its gradient is, so that such a remainder must be 0 and not merely small. In float32
it is 5e-7 of the size: rewards of 1,000,000 and 1,000,001 are still two.
"""


def spread_is_rounding(low: Tensor, high: Tensor, size: Tensor) -> Tensor:
    """Whether numbers between ``low`` and ``high`` are equal but for rounding, bool; all of one shape.

    ``size``: the largest absolute value among them, or among the numbers that they were added up from.
    """
    return high - low <= ROUNDING * torch.finfo(high.dtype).eps * size


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, size: Tensor | None = None) -> Tensor:
    """Scale to unit variance over all real positions; ``shift_mean=False`` adds the mean back afterwards.

    x, mask [B, T] -> [B, T], 0 on padding. The variance is the biased one, as in OpenAI's lm-human-preferences:
    ``whiten([1.2, 1.3, …, 2.0], shift_mean=False)`` spans 0.0508 … 3.1492. Numbers that are equal but for rounding
    (:func:`spread_is_rounding`) have no variance: they give exactly 0, or their mean. ``size``: that of the numbers
    that ``x`` was added up from, a scalar; without it the largest of ``x``.
    """
    mean = masked_mean(x, mask)
    whitened = (x - mean) * torch.rsqrt(masked_variance(x, mask) + 1e-8)
    low, high = x.masked_fill(~mask, torch.inf).min(), x.masked_fill(~mask, -torch.inf).max()
    size = torch.maximum(low.abs(), high.abs()) if size is None else size
    whitened = torch.where(spread_is_rounding(low, high, size), 0.0, whitened)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def place_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Token rewards that hold each sequence's score on its last action (EOS counts) and 0 elsewhere.

    scores [B], mask [B, T] -> [B, T]. A sequence without an action has nowhere to put its score: ValueError.

    Example: score 7, mask [1 1 1 0] -> [0 0 7 0]; mask [1 0 1 0], with a token of an environment -> [0 0 7 0].
    """
    if bool((~mask.any(dim=1)).any()):
        empty = int((~mask.any(dim=1)).nonzero()[0])
        raise ValueError(f"sequence {empty} has no response token to carry its score")
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(dim=1)
    rewards = torch.zeros(mask.shape, dtype=statistics_dtype(scores.dtype), device=mask.device)
    rewards[torch.arange(len(last), device=mask.device), last] = as_statistics(scores)
    return rewards


def overlong_charges(lengths: Tensor, *, response_length: int, buffer_tokens: int, penalty: float) -> Tensor:
    """What each response is charged for its length, float64 [B]; ``lengths`` int64 [B].

    Nothing up to ``response_length - buffer_tokens`` tokens; from there it grows in proportion, to ``penalty`` at
    ``response_length``. Source: DAPO, Yu et al. 2025, eq. 13.

    Example: length 20, buffer 4, penalty 1: 16 tokens cost 0, 17 cost 0.25, 20 cost 1.
    """
    beyond = as_float64(lengths) - (response_length - buffer_tokens)
    return penalty * beyond.clamp(min=0, max=buffer_tokens) / buffer_tokens


def shape_rewards(token_rewards: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """r_t = (token reward)_t - kl_coef * kl_t on real tokens, 0 on padding. All [B, T].

    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", eq. 2.
    """
    return (token_rewards - kl_coef * kl) * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float | Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): advantages and returns, both [B, T].

    delta_t = r_t + gamma * V_{t+1} - V_t,   A_t = delta_t + gamma * lam * A_{t+1},   return_t = A_t + V_t.
    ``values[b, t]`` is V before token t; the episode ends with the last action, cut or not, so V after it is 0. V and A
    of the next token are those of the next *action*: what an environment wrote in between is stepped over. ``lam`` is
    one number, or one for each sequence, [B].

    Example (gamma = lam = 1): rewards [0 0 1], values [.5 .5 .5] -> advantages [.5 .5 .5], returns [1 1 1].
    """
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        is_action = mask[:, t]
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage
        advantages[:, t] = torch.where(is_action, advantage, 0.0)
        next_value = torch.where(is_action, values[:, t], next_value)
        next_advantage = torch.where(is_action, advantage, next_advantage)
    return advantages, (advantages + values) * mask


def decoupled_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    policy_lambda: float | Tensor,
    value_lambda: float,
) -> tuple[Tensor, Tensor]:
    """:func:`gae` twice: advantages by the policy's lambda, returns by the critic's. Both [B, T].

    With ``value_lambda=1`` the critic learns from whole returns, which its own errors cannot bias, while the policy's
    advantages keep the smaller variance of a lambda below 1. With equal lambdas it is :func:`gae`.
    Source: Yuan et al. 2025, "What's Behind PPO's Collapse in Long-CoT?" (VC-PPO), sec. 3.3; Yue et al. 2025, VAPO,
    sec. 4.1.
    """
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=policy_lambda)
    if not isinstance(policy_lambda, Tensor) and policy_lambda == value_lambda:
        return advantages, returns
    return advantages, gae(rewards, values, mask, gamma=gamma, lam=value_lambda)[1]


def length_adaptive_lambda(mask: Tensor, *, alpha: float) -> Tensor:
    """lambda of each sequence, 1 - 1 / (alpha * l) with l its number of actions, float64 [B].

    The weights of the TD errors, 1 + lambda + lambda^2 + …, then add up to alpha * l: a longer response looks further
    ahead. Below l = 1 / alpha the formula is negative; there lambda is 0, the TD error alone.
    Source: Yue et al. 2025, VAPO, sec. 4.2. Example: alpha 0.05, 100 actions -> 0.8.
    """
    lengths = as_float64(mask.sum(dim=1).clamp(min=1))
    return (1 - 1 / (alpha * lengths)).clamp(min=0)


def td_errors(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """delta_t = r_t + gamma * V_{t+1} - V_t, [B, T]: what a token brought beyond what was expected before it.

    It is :func:`gae` with lambda 0: V_{t+1} is V before the next action.
    """
    return gae(rewards, values, mask, gamma=gamma, lam=0.0)[0]


def group_relative(
    totals: Tensor, mask: Tensor, *, group_size: int, estimator: str, sizes: Tensor | None = None
) -> Tensor:
    """Advantages [B, T] from the comparison of the samples of one prompt; every token of a sequence gets the same one.

    totals [B]: reward summed over each sequence, prompt-major (the ``group_size`` samples of a prompt are adjacent).
    "grpo": (x - group mean) / (group std + 1e-4), biased std (Shao et al. 2024, DeepSeekMath, sec. 4.1.2).
    "dr_grpo": x - group mean; the division would weigh up prompts whose samples hardly differ (Liu et al. 2025,
    "Understanding R1-Zero-Like Training", sec. 3.2).
    "rloo": x - mean of the *other* samples (Ahmadian et al. 2024, eq. 7).
    A group whose totals are equal but for rounding (:func:`spread_is_rounding`) gets exactly 0. ``sizes`` [B]: the sum
    of the absolute rewards of each sequence, from which its total was added up; without it, the absolute totals.
    Raises ValueError when B is no multiple of the group size or the group has one sample.
    """
    if group_size < 2 or totals.shape[0] % group_size != 0:
        raise ValueError(f"{totals.shape[0]} sequences do not form groups of {group_size} (at least 2 a group)")
    groups = totals.view(-1, group_size)
    size = (totals.abs() if sizes is None else sizes).view_as(groups).amax(dim=1, keepdim=True)
    ends = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    centred = groups - groups.mean(dim=1, keepdim=True)
    centred = torch.where(spread_is_rounding(*ends, size), 0.0, centred)
    if estimator == "grpo":
        advantages = centred / (groups.std(dim=1, keepdim=True, correction=0) + 1e-4)
    elif estimator == "dr_grpo":
        advantages = centred
    elif estimator == "rloo":
        advantages = centred * group_size / (group_size - 1)  # x - (sum - x) / (n - 1)
    else:
        raise ValueError(f"estimator={estimator!r} must be 'grpo', 'dr_grpo' or 'rloo'")
    return advantages.view(-1, 1) * mask


def reinforce_plus_plus(
    totals: Tensor, mask: Tensor, *, group_size: int | None = None, sizes: Tensor | None = None
) -> Tensor:
    """REINFORCE++: each sequence's total reward, whitened over all actions of the step. totals [B], mask [B, T].

    With ``group_size``, the mean of a prompt's samples is subtracted first ("REINFORCE++ with baseline"). The deviation
    is that of the step, which hardly depends on one prompt's samples as GRPO's does.
    Source: Hu et al. 2025, "REINFORCE++", sec. 3. There a token answers for the KL penalty of its own and of later
    tokens only; here for the whole response's. The two are the same without a KL penalty in the reward.
    ``sizes`` [B] as in :func:`group_relative`: totals that are equal but for rounding give exactly 0.
    Raises ValueError as :func:`group_relative` does.
    """
    if group_size is None:
        return whiten(totals.view(-1, 1) * mask, mask, size=None if sizes is None else sizes.max())
    return whiten(group_relative(totals, mask, group_size=group_size, estimator="dr_grpo", sizes=sizes), mask)


def advantage_of(config: Config) -> AdvantageFn:
    """The estimator that a config asks for."""
    if config.advantage == "gae":
        return partial(whitened_gae, config=config)
    return partial(without_critic, group_size=config.samples_per_prompt, estimator=config.advantage)


def whitened_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, samples: Sequence[Sample], *, config: Config
) -> tuple[Tensor, Tensor]:
    """:func:`raw_gae`, with advantages whitened over all actions of the step; an :data:`ppo.types.AdvantageFn`.

    An advantage is a difference of rewards and values, so its rounding is of their size, not of its own.
    """
    advantages, returns = raw_gae(rewards, values, mask, config)
    if not config.whiten_advantages:
        return advantages, returns
    size = torch.maximum((rewards * mask).abs().max(), (values * mask).abs().max())
    return whiten(advantages, mask, size=size), returns


def raw_gae(rewards: Tensor, values: Tensor, mask: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """:func:`decoupled_gae` with the two lambdas of a config, before whitening."""
    policy_lambda: float | Tensor = config.gae_lambda
    if config.gae_length_alpha is not None:
        policy_lambda = length_adaptive_lambda(mask, alpha=config.gae_length_alpha).to(rewards)
    return decoupled_gae(
        rewards, values, mask, gamma=config.gamma, policy_lambda=policy_lambda, value_lambda=config.critic_lambda
    )


def without_critic(
    rewards: Tensor, values: Tensor, mask: Tensor, samples: Sequence[Sample], *, group_size: int, estimator: str
) -> tuple[Tensor, Tensor]:
    """:func:`group_relative` or :func:`reinforce_plus_plus`; returns are 0. An :data:`ppo.types.AdvantageFn`."""
    totals, sizes = rewards.sum(dim=1), rewards.abs().sum(dim=1)
    if estimator.startswith("reinforce++"):
        compared = group_size if estimator == "reinforce++_baseline" else None
        advantages = reinforce_plus_plus(totals, mask, group_size=compared, sizes=sizes)
    else:
        advantages = group_relative(totals, mask, group_size=group_size, estimator=estimator, sizes=sizes)
    return advantages, torch.zeros_like(rewards)
