"""Responses that were sampled elsewhere (by another engine, on another machine, by hand), made ready for an update.

    rollout = trainer.appraise(given_responses(trainer, prompts, responses, scores))
    trainer.update(rollout)

Policy, critic and reference are asked about them as about the trainer's own. This module samples and scores nothing.
A function that samples in every step is better a ``sampler=`` of the trainer: :mod:`ppo.sampler`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..lm.backbone import context_length, vocabulary_size
from ..lm.precision import statistics_dtype
from ..policy import Policy
from ..prompts import Prompt, read_prompts
from ..sampler import collate
from ..trainer import Trainer
from ..types import Generation, Responses
from . import answers


def given_responses(
    trainer: Trainer,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    scores: Sequence[float] | Tensor | None = None,
    *,
    logprobs: Sequence[Sequence[float]] | Tensor | None = None,
    action_mask: Sequence[Sequence[bool]] | Tensor | None = None,
    token_rewards: Sequence[Sequence[float]] | Tensor | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
    policy_version: int | None = None,
) -> Responses:
    """Responses of any engine for :meth:`Trainer.appraise`, from B prompts and responses as lists of token ids.

    A response that ended by itself holds its EOS; there is no padding. Either ``scores`` [B] or ``token_rewards``
    [B][T] must be given. Old log-probs and values are measured now, by the training forward, under the trainer's own
    temperature and filters.

    logprobs        [B][T], nats: what the engine says of its tokens, under the distribution that it drew from. With
                    ``config.importance`` they give the weights. Else they are compared (``sampler/k3``, …), not used
    action_mask     [B][T] booleans: False on tokens that an environment wrote; None: the policy chose all
    token_rewards   [B][T]: one reward a token, 0 where an environment wrote
    rows            a mapping a response, which ``Sample.row`` shows; None: {"prompt": ids}
    policy_version  ``trainer.policy_version`` of the weights that the engine had; ``sampler/staleness`` counts the
                    updates since. None: unknown

    What is [B][T] is one list a response, of its length, or one tensor [B, T] padded on the right. With several
    processes, each passes the whole step and measures its share. Raises ValueError in one line for whatever has a wrong
    shape, length or value, for padding, and for processes that pass different responses.
    """
    policy, newest = trainer.policy, trainer.policy_version
    with trainer.processes.together():
        _check_combination(trainer.config, scores, token_rewards, logprobs)
        generation, read, given = _read(
            policy, trainer.tokenizer, prompts, responses, scores, logprobs, action_mask, token_rewards, rows
        )
        staleness = None if policy_version is None else newest - answers.read_version(policy_version, newest=newest)
    digests = {name: _digest(x) for name, x in given.items()} | {"policy_version": str(policy_version)}
    _check_same(trainer.processes.all_gather(digests))
    found = trainer.collector.measure(
        generation, read, given["scores"], given["token_rewards"], has_logprobs=logprobs is not None,
        policy_version=newest,
    )  # fmt: skip
    return (
        found if staleness is None else replace(found, metrics=found.metrics | {"sampler/staleness": float(staleness)})
    )


def _read(
    policy: Policy,
    tokenizer: Any | None,
    prompts: Any,
    responses: Any,
    scores: Any,
    logprobs: Any,
    action_mask: Any,
    token_rewards: Any,
    rows: Any,
) -> tuple[Generation, list[Prompt], dict[str, Any]]:
    """The batch, its prompts, and the tensors that were given, by the names of the arguments."""
    ids, drawn = _read_tokens(policy, tokenizer, prompts, responses, is_single_turn=action_mask is None)
    lengths, dtype = [len(response) for response in drawn], statistics_dtype(policy.dtype)
    generation = collate(ids, drawn, eos_ids=policy.sampling.eos_ids or (), device=policy.device)
    actions = generation.mask.cpu() if action_mask is None else answers.read_action_mask(action_mask, lengths)
    given: dict[str, Any] = {"prompts": ids, "responses": drawn, "action_mask": actions}
    given["logprobs"] = None if logprobs is None else answers.read_logprobs(logprobs, lengths, actions, dtype=dtype)
    if token_rewards is None:
        given["token_rewards"], given["scores"] = None, answers.read_scores(scores, len(drawn), dtype=dtype)
    else:
        given["token_rewards"] = answers.read_token_rewards(token_rewards, lengths, actions, dtype=dtype)
        given["scores"] = given["token_rewards"].sum(dim=1)
    read = read_prompts(ids, tokenizer)
    if rows is not None:
        read = [replace(p, row=row) for p, row in zip(read, answers.read_rows(rows, len(read)), strict=True)]
    if action_mask is not None:
        generation = replace(generation, action_mask=actions.to(policy.device))
    if logprobs is not None:
        generation = replace(generation, logprobs=given["logprobs"].to(policy.device))
    return generation, read, given


def _check_combination(config: Config, scores: Any, token_rewards: Any, logprobs: Any) -> None:
    if (scores is None) == (token_rewards is None):
        found = "neither scores nor token_rewards" if scores is None else "both scores and token_rewards"
        raise ValueError(f"given_responses got {found}: give exactly one of them")
    if logprobs is None and config.importance != "off":
        raise ValueError(
            f"Config.importance={config.importance!r} needs logprobs=…, what the engine says of its own tokens"
        )


def _read_tokens(
    policy: Policy, tokenizer: Any | None, prompts: Any, responses: Any, *, is_single_turn: bool
) -> tuple[list[list[int]], list[list[int]]]:
    vocab, context, count = vocabulary_size(policy.model), context_length(policy.model), policy.processes.count
    ids = answers.read_ids("prompts", prompts, vocab_size=vocab)
    drawn = answers.read_ids("responses", responses, vocab_size=vocab)
    if len(ids) != len(drawn):
        raise ValueError(f"{len(ids)} prompts and {len(drawn)} responses: give one response to each prompt")
    if not ids or len(ids) % count:
        raise ValueError(
            f"{len(ids)} responses: wanted a multiple of {count}, the number of processes, and at least one"
        )
    for i, (prompt, response) in enumerate(zip(ids, drawn, strict=True)):
        if context is not None and len(prompt) + len(response) > context:
            raise ValueError(
                f"row {i} has {len(prompt)} + {len(response)} tokens: wanted at most {context}, the model's context"
            )
    answers.refuse_padding(
        ids, drawn, pad_id=getattr(tokenizer, "pad_token_id", None),
        eos_ids=policy.sampling.eos_ids or (), is_single_turn=is_single_turn,
    )  # fmt: skip
    return ids, drawn


def _digest(value: Any) -> str:
    """A short name of lists or a tensor, the same on every process that holds the same."""
    plain = value.tolist() if isinstance(value, torch.Tensor) else value
    return hashlib.sha256(repr(plain).encode()).hexdigest()


def _check_same(digests: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError where a process was given something else than process 0; ``rows`` are not compared."""
    for name, digest in digests[0].items():
        if others := [rank for rank, found in enumerate(digests) if found[name] != digest]:
            raise ValueError(
                f"process {others[0]} was given other {name} than process 0: pass the same whole step on every process"
            )
