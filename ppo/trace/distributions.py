"""The policy's distribution at each position of a response, and the text of its tokens.

This module knows distributions and a tokenizer, nothing about rewards or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..buffer import align, trim
from ..lm.distribution import early_steps, early_tokens, next_token_logprobs
from ..lm.kept_sets import unpack
from ..lm.logprobs import response_positions
from ..policy import Policy
from ..types import Generation
from .records import Alternative

CONTEXT = 8  # tokens before a token that are decoded with it: they decide its text (a space, half a letter)


@dataclass(frozen=True)
class TokenDistributions:
    """What the policy and the critic say about one response.

    ``distribution`` [T, V]: log-probs of all tokens. ``logprobs`` [T]: of the response's own. ``values`` [T]. At forced
    states the distribution is [S, V], and ``plain`` [S, V] is the same without heat; else it is None.
    """

    distribution: Tensor
    logprobs: Tensor
    values: Tensor
    plain: Tensor | None = None


@torch.no_grad()
def ask_distributions(policy: Policy, generation: Generation) -> TokenDistributions:
    """Ask the policy and the critic about a generation of a single row."""
    part = trim(generation)
    rows, backbone, sampling = align(part), policy.actor.backbone, policy.sampling
    tokens = part.tokens[0]
    with policy.precision():
        features = backbone(rows.input_ids, rows.attention_mask)
        chosen = response_positions(features.before_logits, rows.prompt_lengths, part.num_states)[0]
        logits = backbone.output_layer(chosen).float()
    evaluation = policy.evaluate(part)
    found = evaluation.logprobs[0].cpu(), evaluation.values[0].cpu()
    if part.context is not None:
        states = torch.arange(part.num_states, device=logits.device)
        heat = logits.new_ones(len(states)) if part.state_temperatures is None else part.state_temperatures[0]
        heated, plain = (
            next_token_logprobs(x, sampling, is_early=early_steps(states, sampling)).cpu()
            for x in (logits / heat.to(logits).unsqueeze(-1), logits)
        )
        return TokenDistributions(heated, *found, plain)
    is_early = early_tokens(part.mask, part.mask, sampling)
    kept = None if part.kept_sets is None else unpack(part.kept_sets[0], logits.shape[-1])
    distribution = next_token_logprobs(logits, sampling, is_early=is_early, keep=tokens, kept=kept)
    return TokenDistributions(distribution.cpu(), *found)


def alternatives(
    before: Tensor, after: Tensor, token: int, top_k: int, context: Sequence[int], writer: Writer
) -> list[Alternative]:
    """The ``top_k`` likeliest tokens of log-probs [V] before and of those after, and the drawn token.

    Sorted by their probability before the update, the likeliest first. Tokens without any probability are left out.
    """
    count = min(top_k, len(before))
    ids = {token, *before.topk(count).indices.tolist(), *after.topk(count).indices.tolist()}
    found = [Alternative(i, writer.piece(context, i), float(before[i].exp()), float(after[i].exp())) for i in ids]
    return sorted((a for a in found if a.before > 0 or a.after > 0), key=lambda a: (-a.before, -a.after, a.id))


class Writer:
    """The text of a token after other tokens; "" without a tokenizer."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer

    def text(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return "" if self._tokenizer is None else str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def piece(self, context: Sequence[int], token: int) -> str:
        """The text that ``token`` adds after ``context``. Some tokenizers write a space only between two words."""
        if self._tokenizer is None:
            return ""
        start = self._tokenizer.decode(list(context), skip_special_tokens=False) if context else ""
        whole = self._tokenizer.decode([*context, token], skip_special_tokens=False)
        if context and whole.startswith(start) and not start.endswith("\N{REPLACEMENT CHARACTER}"):
            return str(whole[len(start) :])
        return str(self._tokenizer.decode([token], skip_special_tokens=False))
