"""Responses that were sampled elsewhere, made ready for an update: by another engine, on another machine, by hand.

    rollout = trainer.appraise(given_responses(trainer, prompts, responses, scores))
    trainer.update(rollout)

Policy, critic and reference are asked about them as about the trainer's own. This module samples and scores nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .collector import Responses, ask_policy, ask_reference
from .generation.requests import pad_left, pad_right
from .prompts import Prompt, make_samples
from .types import Generation

if TYPE_CHECKING:
    from .trainer import Trainer


def given_responses(
    trainer: Trainer, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], scores: Tensor
) -> Responses:
    """B prompts and responses as token ids (EOS included where there was one) and their scores [B].

    Old log-probs are those of the policy as it is now, under the trainer's own temperature and filters: the responses
    should have been drawn from that distribution. In one process. Raises ValueError for lists of different lengths and
    for a response without a token.
    """
    if not len(prompts) == len(responses) == len(scores):
        raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses and {len(scores)} scores: give as many")
    if empty := [index for index, response in enumerate(responses) if len(response) == 0]:
        raise ValueError(f"response {empty[0]} holds no token: leave it and its prompt out")
    if trainer.processes.count > 1:
        raise ValueError(f"given responses are for one process, not {trainer.processes.count}: use Trainer.rollout")
    started = time.perf_counter()
    generation = _generation(prompts, responses, trainer)
    decode = trainer.tokenizer.decode if trainer.tokenizer is not None else lambda *_, **__: ""
    asked = [Prompt(list(ids), decode(list(ids), skip_special_tokens=True), {"prompt": list(ids)}) for ids in prompts]
    samples = make_samples(asked, generation, trainer.tokenizer)
    old = ask_policy(trainer, generation)
    generation = replace(generation, logprobs=old.logprobs, entropy=old.entropy, values=old.values)
    between = time.perf_counter()
    ref_logprobs = ask_reference(trainer, generation, samples)
    metrics = {"time/old_policy_s": between - started, "time/reference_s": time.perf_counter() - between}
    return Responses(generation, samples, scores.float(), None, old.logprobs, old.values, ref_logprobs, metrics)


def _generation(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], trainer: Trainer) -> Generation:
    device, eos_ids = trainer.device, trainer.sampling.eos_ids or ()
    prompt_ids, prompt_mask = pad_left(prompts, device)
    tokens = pad_right(responses, device)
    lengths = torch.tensor([len(response) for response in responses], device=device)
    mask = torch.arange(tokens.shape[1], device=device) < lengths.unsqueeze(1)
    zeros = torch.zeros(mask.shape, device=device)
    is_ended = torch.tensor([response[-1] in eos_ids for response in responses], device=device)
    return Generation(prompt_ids, prompt_mask, tokens, mask, zeros, zeros, is_ended)
