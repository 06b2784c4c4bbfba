"""Log-probabilities and entropy of response tokens from hidden states, in chunks: never a [B, T, V] tensor.

The distribution is the one that was sampled from: the same temperature, the same filters, the same ban on an early EOS.
Each chunk is computed again in the backward pass, so the memory is one chunk of logits whatever the batch.
This module does not know how hidden states come about.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .config import Sampling
from .generation.sampling import filter_logits
from .types import Generation

OutputLayer = Callable[[Tensor], Tensor]


def response_positions(features: Tensor, prompt_length: int) -> Tensor:
    """The features that *predict* the response tokens: [B, P+T, D] -> [B, T, D].

    Token t of the response stands at position P + t and is predicted by the position before it. This is the one place
    where prompt and response are sliced apart.
    """
    return features[:, prompt_length - 1 : -1]


def token_logprobs(
    before_logits: Tensor,
    output_layer: OutputLayer,
    generation: Generation,
    sampling: Sampling,
    *,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the response tokens and entropy of their distributions (nats), both float32 [B, T], 0 on padding.

    ``before_logits`` [B, T, D] are response positions; ``sampling.eos_ids`` must be given where
    ``min_response_length`` > 0. Only real tokens pass the output layer, ``chunk_tokens`` at a time. A sampled token
    that the top-k/top-p filter of *this* policy would drop stays in the set, so its log-prob is finite.
    """
    mask = generation.mask
    is_early = mask.cumsum(dim=1)[mask] <= sampling.min_response_length
    picked = _real_token_logprobs(
        before_logits[mask], output_layer, generation.tokens[mask], is_early, sampling, chunk_tokens
    )
    logprobs, entropy = (torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, x) for x in picked)
    return logprobs, entropy


def _real_token_logprobs(
    rows: Tensor, output_layer: OutputLayer, tokens: Tensor, is_early: Tensor, sampling: Sampling, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """The same over flat rows [N, D] and tokens [N]."""

    def one_chunk(rows: Tensor, tokens: Tensor, is_early: Tensor) -> tuple[Tensor, Tensor]:
        logits = ban_early_eos(output_layer(rows).float(), is_early, sampling.eos_ids)
        logits = filter_logits(logits, sampling.temperature, sampling.top_k, sampling.top_p, keep=tokens)
        return pick_and_entropy(logits, tokens)

    logprobs, entropies = [], []
    for start in range(0, rows.shape[0], chunk_tokens):
        part = slice(start, start + chunk_tokens)
        if torch.is_grad_enabled():
            logprob, entropy = checkpoint(one_chunk, rows[part], tokens[part], is_early[part], use_reentrant=False)
        else:
            logprob, entropy = one_chunk(rows[part], tokens[part], is_early[part])
        logprobs.append(logprob)
        entropies.append(entropy)
    if not logprobs:
        return rows.new_zeros(0, dtype=torch.float32), rows.new_zeros(0, dtype=torch.float32)
    return torch.cat(logprobs), torch.cat(entropies)


def pick_and_entropy(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-prob of one token a row and the row's entropy: logits [N, V] (may hold -inf), tokens [N] -> [N], [N]."""
    all_logprobs = torch.log_softmax(logits, dim=-1)
    picked = all_logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    # A filtered token has p = 0 and log p = -inf; 0 * -inf is nan, its limit is 0.
    finite = all_logprobs.masked_fill(all_logprobs == -torch.inf, 0.0)
    return picked, -(all_logprobs.exp() * finite).sum(dim=-1)


def ban_early_eos(logits: Tensor, is_early: Tensor, eos_ids: tuple[int, ...] | None) -> Tensor:
    """Give EOS no chance on the rows where ``is_early`` [N] is True; logits [N, V] come back unchanged elsewhere."""
    if not eos_ids or not bool(is_early.any()):
        return logits
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    banned[list(eos_ids)] = True
    return logits.masked_fill(is_early.unsqueeze(-1) & banned, -torch.inf)
