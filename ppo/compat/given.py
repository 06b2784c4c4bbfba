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
from ..prompts import Prompt, padding_id, read_prompts
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
    is_ended: Sequence[bool] | Tensor | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
    policy_version: int | None = None,
) -> Responses:
    """Responses of any engine for :meth:`Trainer.appraise`, from B prompts and responses as lists of token ids.

    Prompts and responses have no padding. A response that ended with an EOS holds it, and has at most
    ``config.response_length`` tokens. The order is prompt-major: where ``config.advantage`` compares the samples of a
    prompt, its ``config.samples_per_prompt`` responses stand side by side, each beside the same prompt. Either
    ``scores`` [B] or ``token_rewards`` [B][T] must be given.

    Measured now, by the training forward under the trainer's own temperature and filters: the old log-probs and the
    entropy of the policy, the values of the critic, and the reference's log-probs. The ratio of the update starts
    at 1, whatever the engine says.

    logprobs        [B][T], nats: what the engine says of its tokens, under the distribution that it drew from. With
                    ``config.importance`` they give the weights. Else they are compared (``sampler/k3``, …), not used
    action_mask     [B][T] booleans: False on tokens that an environment wrote; None: the policy chose all
    token_rewards   [B][T]: one reward a token, 0 where an environment wrote
    is_ended        [B] booleans: the response ended by itself, and was not cut (an environment may end an episode
                    without an EOS). ``config.mask_overlong`` and ``config.missing_eos_penalty`` go by it. None: it did
                    if its last token is an EOS that the policy chose
    rows            a mapping a response, which ``Sample.row`` shows; None: {"prompt": ids}
    policy_version  ``trainer.policy_version`` of the weights that the engine had. It counts optimiser steps: a training
                    step of E epochs in M minibatches adds up to E x M. ``sampler/staleness`` counts those since. None:
                    unknown

    What is [B][T] is one list a response, of its length, or one tensor [B, T] padded on the right. Numbers are Python's
    or numpy's. With several processes, each passes the whole step and measures its share. Raises ValueError in one line
    for whatever has a wrong shape, length or value, for responses beyond ``config.response_length`` or the model's
    context, for padding, for groups whose prompts differ, and for processes that pass different responses.
    """
    policy, newest, dtype = trainer.policy, trainer.policy_version, statistics_dtype(trainer.policy.dtype)
    with trainer.processes.together():
        _check_combination(trainer.config, scores, token_rewards, logprobs)
        version = None if policy_version is None else answers.read_version(policy_version, newest=newest)
        generation, read = read_tokens(policy, trainer.tokenizer, prompts, responses)
        generation = _marked(generation, action_mask, is_ended)
        _check_batch(generation, read, policy, trainer.config, padding_id(trainer.tokenizer))
        if is_ended is None:
            _check_ends(generation, trainer.config)
        lengths, actions = generation.lengths.tolist(), generation.action_mask.cpu()
        said = None if logprobs is None else answers.read_logprobs(logprobs, lengths, actions, dtype=dtype)
        per_token = None
        if token_rewards is not None:
            per_token = answers.read_token_rewards(token_rewards, lengths, actions, dtype=dtype)
        numbers = answers.read_scores(scores, len(read), dtype=dtype) if per_token is None else per_token.sum(dim=1)
        if rows is not None:
            read = [replace(p, row=row) for p, row in zip(read, answers.read_rows(rows, len(read)), strict=True)]
    given = {
        "prompts": [prompt.ids for prompt in read], "responses": _lists(generation), "action_mask": actions,
        "is_ended": generation.is_ended, "logprobs": said, "token_rewards": per_token, "scores": numbers,
        "policy_version": version,
    }  # fmt: skip
    _check_same(trainer.processes.all_gather({name: _digest(value) for name, value in given.items()}))
    if said is not None:
        generation = replace(generation, logprobs=said.to(policy.device))
    found = trainer.collector.measure(
        generation, read, numbers, per_token, has_logprobs=said is not None, policy_version=newest
    )
    if version is None:
        return found
    return replace(found, metrics=found.metrics | {"sampler/staleness": float(newest - version)})


def read_tokens(policy: Policy, tokenizer: Any | None, prompts: Any, responses: Any) -> tuple[Generation, list[Prompt]]:
    """Prompts and responses, as lists of token ids, in one batch; log-probs and entropy are 0.

    Raises ValueError in one line for what are no such lists, for ids outside the vocabulary, for a row that the model's
    context cannot hold, and for prompts that begin or end with padding.
    """
    vocab, context = vocabulary_size(policy.model), context_length(policy.model)
    ids = answers.read_ids("prompts", prompts, vocab_size=vocab)
    drawn = answers.read_ids("responses", responses, vocab_size=vocab)
    if len(ids) != len(drawn):
        raise ValueError(f"{len(ids)} prompts and {len(drawn)} responses: give one response to each prompt")
    if not ids:
        raise ValueError("there are 0 responses: give at least one")
    for i, (prompt, response) in enumerate(zip(ids, drawn, strict=True)):
        if context is not None and len(prompt) + len(response) > context:
            raise ValueError(
                f"row {i} has {len(prompt)} + {len(response)} tokens: wanted at most {context}, the model's context"
            )
    generation = collate(ids, drawn, eos_ids=policy.sampling.eos_ids or (), device=policy.device)
    return generation, read_prompts(ids, tokenizer)


def _check_combination(config: Config, scores: Any, token_rewards: Any, logprobs: Any) -> None:
    if (scores is None) == (token_rewards is None):
        found = "neither scores nor token_rewards" if scores is None else "both scores and token_rewards"
        raise ValueError(f"given_responses got {found}: give exactly one of them")
    if logprobs is None and config.importance != "off":
        raise ValueError(
            f"Config.importance={config.importance!r} needs logprobs=…, what the engine says of its own tokens"
        )


def _marked(generation: Generation, action_mask: Any, is_ended: Any) -> Generation:
    """The batch with the tokens that the policy chose, and with the responses that ended by themselves."""
    actions, ended = generation.mask, generation.is_ended
    if action_mask is not None:
        actions = answers.read_action_mask(action_mask, generation.lengths.tolist()).to(actions.device)
        ended = ended & actions.gather(1, generation.lengths.unsqueeze(1) - 1).squeeze(1)
    if is_ended is not None:
        ended = answers.read_is_ended(is_ended, len(generation)).to(actions.device)
    return replace(generation, action_mask=actions, is_ended=ended)


def _check_batch(
    generation: Generation, read: Sequence[Prompt], policy: Policy, config: Config, pad_id: int | None
) -> None:
    """Raise ValueError for responses that do not fit together, that are too long for the config, or that are padded."""
    drawn, count = _lists(generation), policy.processes.count
    if len(drawn) % count:
        raise ValueError(f"{len(drawn)} responses: wanted a multiple of {count}, the number of processes")
    for i, response in enumerate(drawn):
        if len(response) > config.response_length:
            raise ValueError(
                f"responses[{i}] has {len(response)} tokens: wanted at most {config.response_length}, "
                "Config.response_length"
            )
    if config.compares_samples:  # an advantage of one's own goes with a config that does not
        answers.refuse_mixed_groups(
            [prompt.ids for prompt in read], size=config.samples_per_prompt,
            why=f"Config.advantage={config.advantage!r} compares the {config.samples_per_prompt} samples of a prompt",
        )  # fmt: skip
    answers.refuse_padding(drawn, generation.action_mask, pad_id=pad_id, eos_ids=policy.sampling.eos_ids or ())


def _check_ends(generation: Generation, config: Config) -> None:
    """Raise ValueError where nobody said what ended by itself, and ``mask_overlong`` would leave out all responses."""
    if not config.mask_overlong or bool(generation.is_ended.any()):
        return
    short = (generation.lengths < config.response_length).nonzero().flatten().tolist()
    if short:
        raise ValueError(
            f"Config.mask_overlong would leave out all {len(generation)} responses: none ends with an EOS that the "
            f"policy chose, also responses[{short[0]}] with room for more: say which ended by themselves, is_ended=…"
        )


def _lists(generation: Generation) -> list[list[int]]:
    """The responses as lists of token ids."""
    return [row[:length] for row, length in zip(generation.tokens.tolist(), generation.lengths.tolist(), strict=True)]


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
