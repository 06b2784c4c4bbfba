"""The statistics of a step under the names of TRL's classic trainer.

``ppo/policy/approxkl`` is k3 of old against new here, and k2 in TRL. Both are nats per token and close to each other.
``ppo/policy/policykl``, ``ppo/policy/advantages``, ``ppo/val/vpred`` and ``ppo/val/error`` are missing, because the
library does not measure them. This module computes nothing that training depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..advantages import masked_mean, masked_variance
from ..config import Config
from ..types import Rollout

_UPDATE_NAMES = {
    "ppo/loss/policy": "policy/loss",
    "ppo/loss/value": "value/loss",
    "ppo/policy/entropy": "policy/entropy",
    "ppo/policy/approxkl": "policy/approx_kl",
    "ppo/policy/clipfrac": "policy/clip_fraction",
    "ppo/policy/ratio": "policy/ratio",
    "ppo/val/clipfrac": "value/clip_fraction",
    "ppo/val/var_explained": "value/explained_variance",
    "ppo/learning_rate": "update/learning_rate",
    "time/ppo/optimize_step": "time/update_s",
}


def old_statistics(
    rollout: Rollout, metrics: Mapping[str, float], config: Config, *, kl_coef: float, seconds: float
) -> dict[str, Any]:
    """Numbers, and tensors where TRL has tensors. ``metrics``: what ``Trainer.update`` returned. ``kl_coef``: its value
    before the update. If all minibatches were skipped, the numbers that they would have given are left out.
    """
    mask, old = rollout.generation.action_mask, rollout.old_values
    queries = rollout.generation.prompt_mask.sum(dim=1).float()
    responses = rollout.generation.lengths.float()
    stats: dict[str, Any] = {
        "objective/kl": rollout.kl.sum(dim=1).mean(),
        "objective/kl_dist": rollout.kl.sum(dim=1),
        "objective/kl_coef": kl_coef,
        "objective/logprobs": rollout.old_logprobs,
        "objective/ref_logprobs": rollout.ref_logprobs,
        "objective/entropy": -rollout.old_logprobs.sum(dim=1).mean(),
        "ppo/mean_non_score_reward": masked_mean(-kl_coef * rollout.kl, mask),
        "ppo/mean_scores": rollout.scores.mean(),
        "ppo/std_scores": rollout.scores.std()
        if len(rollout) > 1
        else torch.zeros((), dtype=torch.float32, device="cpu"),
        "ppo/policy/advantages_mean": masked_mean(rollout.advantages, mask),
        "ppo/returns/mean": masked_mean(rollout.returns, mask),
        "ppo/returns/var": masked_variance(rollout.returns, mask),
        "ppo/val/mean": masked_mean(old, mask),
        "ppo/val/var": masked_variance(old, mask),
        **_lengths("queries", queries),
        **_lengths("responses", responses),
        "time/ppo/total": seconds,
    }
    stats |= {name: metrics[ours] for name, ours in _UPDATE_NAMES.items() if ours in metrics}
    if "policy/loss" in metrics:
        stats["ppo/loss/total"] = metrics["policy/loss"] + config.value_coef * metrics["value/loss"]
    return {
        name: value.item() if isinstance(value, Tensor) and value.dim() == 0 else value for name, value in stats.items()
    }


def _lengths(kind: str, lengths: Tensor) -> dict[str, Any]:
    return {
        f"tokens/{kind}_len_mean": lengths.mean(),
        f"tokens/{kind}_len_std": lengths.std()
        if len(lengths) > 1
        else torch.zeros((), dtype=torch.float32, device="cpu"),
        f"tokens/{kind}_dist": lengths,
    }


def environment_statistics(rewards: Tensor) -> dict[str, Any]:
    """What ``log_stats`` adds about the rewards [B]."""
    return {
        "env/reward_mean": float(rewards.mean()),
        "env/reward_std": float(rewards.std()) if len(rewards) > 1 else 0.0,
        "env/reward_dist": rewards,
    }
