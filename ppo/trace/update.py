"""A traced update: the trainer's own update with a recorder, and the distributions at each position before and after.

This module is given the policy and the update, and puts the trace together. :mod:`ppo.trace.recorder` records what
happens during the update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..advantages import length_adaptive_lambda, masked_mean, masked_variance, raw_gae, shape_rewards, td_errors
from ..config import Config
from ..policy import Policy
from ..types import Observer, Rollout
from .distributions import CONTEXT, TokenDistributions, Writer, alternatives, ask_distributions
from .recorder import Recorder
from .records import RowTrace, TokenTrace, TokenUpdate, Trace


class Update(Protocol):
    """The signature of :meth:`ppo.Trainer.update`."""

    def __call__(self, rollout: Rollout, *, observer: Observer | None = None) -> dict[str, float]: ...


def trace_update(
    policy: Policy,
    update: Update,
    rollout: Rollout,
    rows: Sequence[int],
    *,
    config: Config,
    step: int,
    kl_coef: float,
    tokenizer: Any | None,
    top_k: int = 5,
    has_own_loss: bool = False,
    has_own_estimator: bool = False,
) -> Trace:
    """Run ``update`` on the rollout and trace the given rows: see :meth:`ppo.Trainer.trace`.

    It holds rows x T x V log-probs in memory while the update runs. ``kl_coef``: the KL coefficient before the update,
    used if the rollout's metrics do not hold it. ``has_own_loss``, ``has_own_estimator``: they are not the config's.
    Raises ValueError for rows that the rollout lacks or that an environment wrote a part of, for a rollout without
    ``token_rewards``, for ``top_k`` below 1, under an own estimator, and with several processes.
    """
    if has_own_estimator:
        raise ValueError("a trace shows the formulas of the library's estimators: leave advantage=… out to take one")
    _check(policy, rollout, rows, top_k)
    kl_coef = rollout.metrics.get("kl/coef", kl_coef)
    recorder = Recorder(rollout, rows, config, has_own_loss=has_own_loss)
    before = [ask_distributions(policy, rollout.generation.rows([row])) for row in rows]
    metrics = update(recorder.marked, observer=recorder)
    after = [ask_distributions(policy, rollout.generation.rows([row])) for row in rows]
    columns = _columns(rollout, config, kl_coef)
    shared = _numbers(columns, rollout.generation.action_mask, config) | {"kl_coef": kl_coef}
    if "score/running_std" in rollout.metrics:
        shared["score_std"] = rollout.metrics["score/running_std"]
    writer = Writer(tokenizer)
    traces = [
        _row_trace(rollout, row, columns, recorder.updates[row], *asked, config=config, writer=writer, top_k=top_k)
        for row, *asked in zip(rows, before, after, strict=True)
    ]
    return Trace(step, len(rollout), config.to_dict(), shared, recorder.minibatches, traces, metrics)


def _check(policy: Policy, rollout: Rollout, rows: Sequence[int], top_k: int) -> None:
    if policy.processes.count > 1:
        raise ValueError("a trace is taken in one process: run this step without torchrun")
    if rollout.token_rewards is None:
        raise ValueError("the rollout has no token_rewards, so a trace cannot show them: use trainer.rollout()'s")
    if not rows or len(set(rows)) != len(rows) or not all(0 <= row < len(rollout) for row in rows):
        raise ValueError(f"rows={list(rows)} must be different numbers from 0 to {len(rollout) - 1}")
    generation = rollout.generation
    if bool((generation.mask & ~generation.action_mask)[list(rows)].any()):
        raise ValueError(f"rows={list(rows)}: an environment wrote a part of them, which a trace cannot show yet")
    if rollout.importance_weights is not None:
        raise ValueError("a trace shows no importance weights yet: take one with Config(importance='off')")
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")


def _numbers(columns: Mapping[str, Tensor], mask: Tensor, config: Config) -> dict[str, float]:
    """The step's number of tokens, and the means and variances that its whitening used."""
    numbers = {"num_tokens": float(mask.sum())}
    whitened = {"reward": "shaped_reward"} if config.whiten_rewards else {}
    if config.has_critic and config.whiten_advantages:
        whitened["advantage"] = "raw_advantage"
    found = {name: columns[column] for name, column in whitened.items()}
    if config.advantage.startswith("reinforce++"):
        found["advantage"] = _totals(columns["reward"], config) * mask
    for name, x in found.items():
        numbers[f"{name}_mean"] = float(masked_mean(x, mask))
        numbers[f"{name}_variance"] = float(masked_variance(x, mask))
    return numbers


def _totals(rewards: Tensor, config: Config) -> Tensor:
    """What REINFORCE++ whitens, [B, 1]: total rewards, less the mean of their group where it compares samples."""
    totals = rewards.sum(dim=1)
    if config.compares_samples:
        groups = totals.view(-1, config.samples_per_prompt)
        totals = (groups - groups.mean(dim=1, keepdim=True)).view(-1)
    return totals.view(-1, 1)


def _columns(rollout: Rollout, config: Config, kl_coef: float) -> dict[str, Tensor]:
    """Every number of the rollout, [B, T], under its name in a :class:`TokenTrace`."""
    mask = rollout.generation.action_mask
    assert rollout.token_rewards is not None
    penalty = kl_coef if config.kl_as == "reward" else 0.0
    columns = {
        "old_logprob": rollout.old_logprobs,
        "old_probability": rollout.old_logprobs.exp(),
        "entropy": rollout.generation.entropy,
        "kl": rollout.kl,
        "token_reward": rollout.token_rewards,
        "shaped_reward": shape_rewards(rollout.token_rewards, rollout.kl, mask, kl_coef=penalty),
        "reward": rollout.rewards,
        "advantage": rollout.advantages,
    }
    if rollout.ref_logprobs is not None:
        columns["ref_logprob"] = rollout.ref_logprobs
    if config.has_critic:
        advantages, _ = raw_gae(rollout.rewards, rollout.old_values, mask, config)
        columns |= {
            "value": rollout.old_values,
            "td_error": td_errors(rollout.rewards, rollout.old_values, mask, gamma=config.gamma),
            "raw_advantage": advantages,
            "return_value": rollout.returns,
        }
    return columns


def _row_trace(
    rollout: Rollout,
    row: int,
    columns: dict[str, Tensor],
    updates: list[list[TokenUpdate]],
    before: TokenDistributions,
    after: TokenDistributions,
    *,
    config: Config,
    writer: Writer,
    top_k: int,
) -> RowTrace:
    sample = rollout.samples[row]
    numbers: dict[str, list[float]] = {name: x[row].tolist() for name, x in columns.items()}
    numbers["final_logprob"] = after.logprobs.tolist()
    numbers["final_probability"] = after.logprobs.exp().tolist()
    optional = ["ref_logprob", "value", "td_error", "raw_advantage", "return_value", "final_value"]
    if config.has_critic:
        numbers["final_value"] = after.values.tolist()
    tokens = []
    for t, token in enumerate(sample.ids):
        context = (sample.prompt_ids + sample.ids[:t])[-CONTEXT:]
        found = alternatives(before.distribution[t], after.distribution[t], token, top_k, context, writer)
        here: dict[str, Any] = {name: x[t] for name, x in numbers.items()}
        here |= {name: None for name in optional if name not in here}
        text = writer.piece(context, token)
        tokens.append(TokenTrace(id=token, text=text, alternatives=found, updates=updates[t], **here))
    totals = rollout.rewards.sum(dim=1)
    mean, std = _group(totals, row, config.samples_per_prompt) if config.compares_samples else (None, None)
    alpha, actions = config.gae_length_alpha, rollout.generation.action_mask[row : row + 1]
    policy_lambda = None if alpha is None else float(length_adaptive_lambda(actions, alpha=alpha))
    pieces = [writer.piece(sample.prompt_ids[max(i - CONTEXT, 0) : i], x) for i, x in enumerate(sample.prompt_ids)]
    return RowTrace(
        row, sample.prompt, list(sample.prompt_ids), pieces, sample.text, sample.is_ended,
        float(rollout.scores[row]), int(rollout.generation.action_mask[row].sum()), float(totals[row]), mean, std,
        tokens, policy_lambda,
    )  # fmt: skip


def _group(totals: Tensor, row: int, size: int) -> tuple[float, float]:
    """Mean and biased standard deviation of the totals of a row's group."""
    group = totals.view(-1, size)[row // size]
    return float(group.mean()), float(group.std(correction=0))
