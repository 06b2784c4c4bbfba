"""A traced update: the trainer's own update with a recorder, and the distributions at each position before and after.

This module is given the policy and the update, and puts the trace together. :mod:`ppo.trace.recorder` records what
happens during the update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from torch import Tensor

from ..advantages import length_adaptive_lambda, masked_mean, masked_variance, raw_gae, shape_rewards, td_errors
from ..config import Config
from ..policy import Policy
from ..types import Generation, Observer, Rollout, Sample
from .distributions import CONTEXT, TokenDistributions, Writer, alternatives, ask_distributions
from .recorder import Recorder
from .records import RowTrace, TokenTrace, TokenUpdate, Trace
from .states import StatesTold, drawn_at_states

_NUMBERS = tuple(
    f.name
    for f in fields(TokenTrace)
    if f.name not in ("id", "text", "is_action", "alternatives", "updates", "state", "draws")
)


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
    own_advantage: str = "",
    told: StatesTold,
) -> Trace:
    """Run ``update`` on the rollout and trace the given rows: see :meth:`ppo.Trainer.trace`.

    It holds rows x T x V log-probs in memory while the update runs. ``kl_coef``: the KL coefficient before the update,
    used if the rollout's metrics do not hold it. ``has_own_loss``: the policy loss is not the config's.
    ``own_advantage``: the name of the estimator if it is not the config's. ``told``: what the caller knows of forced
    states. Raises ValueError for rows that the rollout
    lacks, for a rollout without ``token_rewards`` or with importance weights, for ``top_k`` below 1, with several
    processes, and under ``config.mask_overlong``.
    """
    _check(policy, rollout, rows, top_k, config)
    kl_coef = rollout.metrics.get("kl/coef", kl_coef)
    recorder = Recorder(rollout, rows, config, has_own_loss=has_own_loss)
    before = [ask_distributions(policy, rollout.generation.rows([row])) for row in rows]
    metrics = update(recorder.marked, observer=recorder)
    after = [ask_distributions(policy, rollout.generation.rows([row])) for row in rows]
    columns = _columns(rollout, config, kl_coef) | _judged(rollout, config, has_own_advantage=bool(own_advantage))
    shared = _numbers(columns, rollout.generation, config, has_own_advantage=bool(own_advantage))
    shared["kl_coef"] = kl_coef
    if "score/running_std" in rollout.metrics:
        shared["score_std"] = rollout.metrics["score/running_std"]
    writer = Writer(tokenizer)
    traces = [
        _row_trace(
            rollout,
            row,
            columns,
            recorder.updates[row],
            *asked,
            config=config,
            writer=writer,
            top_k=top_k,
            has_own_advantage=bool(own_advantage),
            told=told,
        )
        for row, *asked in zip(rows, before, after, strict=True)
    ]
    return Trace(
        step, len(rollout), config.to_dict(), shared, recorder.minibatches, traces, metrics, own_advantage,
        list(told.quantities),
    )  # fmt: skip


def _check(policy: Policy, rollout: Rollout, rows: Sequence[int], top_k: int, config: Config) -> None:
    if policy.processes.count > 1:
        raise ValueError("a trace is taken in one process: run this step without torchrun")
    if rollout.token_rewards is None:
        raise ValueError("the rollout has no token_rewards, so a trace cannot show them: use trainer.rollout()'s")
    if not rows or len(set(rows)) != len(rows) or not all(0 <= row < len(rollout) for row in rows):
        raise ValueError(f"rows={list(rows)} must be different numbers from 0 to {len(rollout) - 1}")
    if rollout.importance_weights is not None:
        raise ValueError("a trace shows no importance weights yet: take one with Config(importance='off')")
    if config.mask_overlong:
        raise ValueError(
            "a trace does not show what mask_overlong leaves out: take one with Config(mask_overlong=False)"
        )
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")


def _numbers(
    columns: Mapping[str, Tensor], generation: Generation, config: Config, *, has_own_advantage: bool
) -> dict[str, float]:
    """The step's numbers of tokens, and the means and variances that its whitening used."""
    mask = generation.action_mask
    numbers = {"num_tokens": float(mask.sum())}
    if num_written := int((generation.mask & ~mask).sum()):
        numbers["num_written"] = float(num_written)
    if generation.context is not None:
        numbers["num_states"] = float(mask[:, :: generation.actions_per_state].sum())
    whitened = {"reward": "shaped_reward"} if config.whiten_rewards else {}
    if "raw_advantage" in columns and config.whiten_advantages:
        whitened["advantage"] = "raw_advantage"
    found = {name: columns[column] for name, column in whitened.items()}
    if config.advantage.startswith("reinforce++") and not has_own_advantage:
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
    }
    if rollout.ref_logprobs is not None:
        columns["ref_logprob"] = rollout.ref_logprobs
    return columns


def _judged(rollout: Rollout, config: Config, *, has_own_advantage: bool) -> dict[str, Tensor]:
    """What the estimator was given and what it returned; the steps in between only where they are the library's."""
    mask = rollout.generation.action_mask
    columns = {"advantage": rollout.advantages}
    if config.has_critic:
        columns["value"] = rollout.old_values
    if config.has_critic or has_own_advantage:
        columns["return_value"] = rollout.returns
    if config.has_critic and not has_own_advantage:
        columns["raw_advantage"], _ = raw_gae(rollout.rewards, rollout.old_values, mask, config)
        columns["td_error"] = td_errors(rollout.rewards, rollout.old_values, mask, gamma=config.gamma)
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
    has_own_advantage: bool,
    told: StatesTold,
) -> RowTrace:
    sample, actions = rollout.samples[row], rollout.generation.action_mask[row : row + 1]
    numbers: dict[str, list[float]] = {name: x[row].tolist() for name, x in columns.items()}
    numbers["final_logprob"] = after.logprobs.tolist()
    numbers["final_probability"] = after.logprobs.exp().tolist()
    if config.has_critic:
        numbers["final_value"] = after.values.tolist()
    drawn = None
    if rollout.generation.context is not None:
        drawn = drawn_at_states(
            rollout.generation, row, sample, numbers, _NUMBERS, updates, before, after, told=told, writer=writer,
            top_k=top_k,
        )  # fmt: skip
    totals = rollout.rewards.sum(dim=1)
    is_grouped = config.compares_samples and not has_own_advantage
    mean, std = _group(totals, row, config.samples_per_prompt) if is_grouped else (None, None)
    alpha = None if has_own_advantage else config.gae_length_alpha
    policy_lambda = None if alpha is None else float(length_adaptive_lambda(actions, alpha=alpha))
    pieces = [writer.piece(sample.prompt_ids[max(i - CONTEXT, 0) : i], x) for i, x in enumerate(sample.prompt_ids)]
    return RowTrace(
        row, sample.prompt, list(sample.prompt_ids), pieces, sample.text if drawn is None else writer.text(drawn.text),
        sample.is_ended, float(rollout.scores[row]), int(actions.sum()), float(totals[row]), mean, std,
        _tokens(sample, actions[0].tolist(), numbers, updates, before, after, writer=writer, top_k=top_k)
        if drawn is None
        else drawn.tokens,
        policy_lambda, [] if drawn is None else drawn.states, "" if drawn is None else drawn.remark,
    )  # fmt: skip


def _tokens(
    sample: Sample,
    actions: Sequence[bool],
    numbers: Mapping[str, Sequence[float]],
    updates: Sequence[list[TokenUpdate]],
    before: TokenDistributions,
    after: TokenDistributions,
    *,
    writer: Writer,
    top_k: int,
) -> list[TokenTrace]:
    """The tokens of a response. ``actions``: which of them the policy chose; ``numbers``: of each token, by name."""
    tokens = []
    for t, (token, is_action) in enumerate(zip(sample.ids, actions, strict=False)):
        context = (sample.prompt_ids + sample.ids[:t])[-CONTEXT:]
        here: dict[str, Any] = dict.fromkeys(_NUMBERS)
        found = []
        if is_action:
            here |= {name: x[t] for name, x in numbers.items()}
            found = alternatives(before.distribution[t], after.distribution[t], token, top_k, context, writer)
        text = writer.piece(context, token)
        tokens.append(
            TokenTrace(id=token, text=text, alternatives=found, updates=updates[t], is_action=is_action, **here)
        )
    return tokens


def _group(totals: Tensor, row: int, size: int) -> tuple[float, float]:
    """Mean and biased standard deviation of the totals of a row's group."""
    group = totals.view(-1, size)[row // size]
    return float(group.mean()), float(group.std(correction=0))
