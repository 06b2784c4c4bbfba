"""The distribution that tokens are drawn from, and the draw: pure functions over logits.

A token is drawn by inverting the cumulative distribution at one uniform number that was fixed beforehand for this
(request, token). So neither the batch a request is in nor its place there can change what is sampled.
This module knows nothing about models, caches or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Sampling

_BLOCK = 128  # the cumulative distribution is inverted in two levels: over blocks, then inside one block
_UNIFORM_BITS = 24  # what float32 resolves; the largest uniform is 1 - 2**-24
_NUCLEUS_GUESS = 256  # most nuclei are smaller, and a partial sort is far cheaper than a whole one
_NO_CHANCE = -1e4  # exp(-1e4) is 0 in float32, and 0 * -1e4 is 0 where 0 * -inf is nan


@dataclass(frozen=True)
class Draw:
    """``tokens`` int64 [N]; ``logprobs`` and ``entropy`` (nats) float32 [N] of the distribution drawn from."""

    tokens: Tensor
    logprobs: Tensor
    entropy: Tensor


def uniforms(seed: int, request_ids: Sequence[int], length: int) -> Tensor:
    """One number in [0, 1) per (request, token), float32 [R, length], on the CPU.

    Counter-based (Philox) and keyed by (seed, request id): a request's numbers depend on nothing else, and a longer
    response only adds numbers at the end.
    """
    mask = 2**64 - 1
    rows = np.empty((len(request_ids), length), dtype=np.uint64)
    for row, request_id in enumerate(request_ids):
        key = np.array([seed & mask, request_id & mask], dtype=np.uint64)
        rows[row] = np.random.Philox(key=key).random_raw(length)
    return torch.from_numpy(((rows >> np.uint64(64 - _UNIFORM_BITS)) * 2.0**-_UNIFORM_BITS).astype(np.float32))


def filter_logits(logits: Tensor, temperature: float, top_k: int, top_p: float, keep: Tensor | None = None) -> Tensor:
    """Logits [N, V] of the sampling distribution: divided by the temperature, -inf outside top-k, then top-p.

    Top-p acts on what top-k left, renormalised: it keeps the likeliest tokens until their sum reaches ``top_p``.
    Tokens that tie with the last one kept stay too. ``keep`` int64 [N] names one token a row that stays in any case.
    Temperature 0 is greedy: the model's own distribution comes back. Differentiable with respect to ``logits``, which
    are not changed (they are returned as they are where nothing is to be done).
    """
    if temperature == 0:
        return logits
    scaled = logits / temperature if temperature != 1 else logits
    has_top_k = 0 < top_k < logits.shape[-1]
    if not has_top_k and top_p >= 1:
        return scaled
    with torch.no_grad():
        floor = _filter_floor(scaled.detach(), top_k if has_top_k else 0, top_p)
        is_dropped = scaled < floor
        if keep is not None:
            is_dropped.scatter_(-1, keep.unsqueeze(-1), False)
    return scaled.masked_fill(is_dropped, -torch.inf)


def _filter_floor(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """The smallest logit that stays, [N, 1]."""
    if not top_k:
        return _nucleus_floor(scaled, torch.logsumexp(scaled, dim=-1, keepdim=True), top_p)
    floor = scaled.topk(top_k, dim=-1).values[:, -1:]
    if top_p >= 1:
        return floor
    kept = scaled.masked_fill(scaled < floor, -torch.inf)
    return _nucleus_floor(kept, torch.logsumexp(kept, dim=-1, keepdim=True), top_p)


def _nucleus_floor(scaled: Tensor, log_total: Tensor, top_p: float) -> Tensor:
    """The logit of the last token in the nucleus, [N, 1]; a token is in it if those before it hold less than top_p."""
    vocab = scaled.shape[-1]
    count = min(_NUCLEUS_GUESS, vocab)
    while True:
        top = scaled.topk(count, dim=-1).values
        chances = (top - log_total).exp()
        is_inside = chances.cumsum(dim=-1) - chances < top_p
        if count == vocab or not bool(is_inside[:, -1].any()):
            break
        count = min(count * 8, vocab)
    # The cumulative sum never falls, so the nucleus is a prefix; its first token is always in it.
    last = is_inside.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return top.gather(-1, last)


def ban(logits: Tensor, is_banned_row: Tensor, token_ids: Tensor) -> Tensor:
    """Give ``token_ids`` [E] no chance in the rows where ``is_banned_row`` [N] is True; logits [N, V] are changed."""
    logits[:, token_ids] = logits[:, token_ids].masked_fill(is_banned_row.unsqueeze(-1), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Draw:
    """Draw one token a row from logits float32 [N, V] (overwritten) with uniforms [N]; greedy for temperature 0.

    Raises ValueError where a row of logits is no distribution (NaN or +inf, or nothing but -inf).
    """
    scaled = filter_logits(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    shifted = scaled.sub_(scaled.amax(dim=-1, keepdim=True)).clamp_(min=_NO_CHANCE)
    weights = shifted.exp()
    totals = _Cumulative(weights)
    if not bool(torch.isfinite(totals.total).all()):
        raise ValueError("the model's logits are NaN or infinite, nothing can be sampled: lower the learning rate")
    tokens = shifted.argmax(dim=-1) if sampling.is_greedy else totals.invert(uniform)
    log_total = totals.total.log()
    logprobs = shifted.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - log_total
    entropy = log_total - torch.linalg.vecdot(weights, shifted) / totals.total
    return Draw(tokens, logprobs, entropy)


class _Cumulative:
    """The cumulative distribution of weights [N, V] in two levels, so that V numbers are summed but not written."""

    def __init__(self, weights: Tensor) -> None:
        rest = -weights.shape[-1] % _BLOCK
        padded = F.pad(weights, (0, rest)) if rest else weights
        self._blocks = padded.view(padded.shape[0], -1, _BLOCK)
        self._cumulative = self._blocks.sum(dim=-1).cumsum(dim=-1)
        self.total = self._cumulative[:, -1]

    def invert(self, uniform: Tensor) -> Tensor:
        """The first token whose cumulative weight exceeds ``uniform * total``, int64 [N]; its weight is never 0."""
        target = (uniform * self.total).unsqueeze(-1)
        block = torch.searchsorted(self._cumulative, target, right=True)
        before = self._cumulative.gather(-1, (block - 1).clamp(min=0)).where(block > 0, 0.0)
        inside = self._blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, _BLOCK)).squeeze(1).cumsum(dim=-1)
        # Rounding may put the target at the very end of the block, behind its last token: step back by one bit.
        target = torch.minimum(target - before, inside[:, -1:] * (1 - 2.0**-_UNIFORM_BITS))
        return (block * _BLOCK + torch.searchsorted(inside, target, right=True)).squeeze(-1)
