"""What a lab twin has memorised and how well it writes: the figures in ``recipe.json``.

This module takes token ids and knows nothing about training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import GPTNeoForCausalLM

BATCH = 64


@torch.no_grad()
def extraction(
    model: GPTNeoForCausalLM, prompts: Sequence[Sequence[int]], suffixes: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Teacher-forced figures of a group of records. All prompts have one length, and all suffixes have one length.

    ``exact``: share of suffixes that greedy decoding reproduces, which it does iff every argmax is correct.
    ``accuracy``: share of correct argmaxes. ``token_probability``: mean probability of the true token.
    ``sequence_probability``: median over the records of the probability of the whole suffix.
    """
    rows = torch.tensor([[*prompt, *suffix] for prompt, suffix in zip(prompts, suffixes, strict=True)])
    length = len(suffixes[0])
    right, logprobs = [], []
    for batch in rows.split(BATCH):
        logits = model(batch).logits[:, -length - 1 : -1]
        targets = batch[:, -length:]
        right.append(logits.argmax(-1) == targets)
        logprobs.append(logits.log_softmax(-1).gather(2, targets[..., None])[..., 0])
    is_right, logprob = torch.cat(right), torch.cat(logprobs)
    return {
        "exact": is_right.all(dim=1).double().mean().item(),
        "accuracy": is_right.double().mean().item(),
        "token_probability": logprob.double().exp().mean().item(),
        "sequence_probability": logprob.double().sum(dim=1).exp().median().item(),
    }


@torch.no_grad()
def perplexity(model: GPTNeoForCausalLM, chunks: Sequence[Sequence[int]]) -> float:
    """exp of the mean NLL of all tokens but the first of each chunk. All chunks have one length."""
    total, count = 0.0, 0
    for batch in torch.tensor(chunks).split(BATCH):
        logits = model(batch).logits[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
        count += batch[:, 1:].numel()
    return math.exp(total / count)
