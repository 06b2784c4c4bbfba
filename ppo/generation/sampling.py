"""The distribution that tokens are drawn from, and the draw: pure functions over logits.

A token is drawn by inverting the cumulative distribution at one uniform number that was fixed beforehand for this
(request, token). So neither the batch a request is in nor its place there can change what is sampled.
This module knows nothing about models, caches or requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Sampling

_BLOCK = 128  # the cumulative distribution is inverted in two levels: over blocks, then inside one block
_UNIFORM_BITS = 24  # what float32 resolves; the largest uniform is 1 - 2**-24
_NUCLEUS_GUESS = 128  # most nuclei are smaller, and a partial sort is far cheaper than a whole one
_SORTED_WHOLE = 4096  # below this many tokens a whole sort is as cheap
_NUMBERS_AT_ONCE = 2**19  # logits; 32 rows of 49,152 took 7.6 ms in one go, 3.0 ms in goes of this size
_LOG2_E = math.log2(math.e)
_LEAST_EXPONENT = -115.0  # exp2 is slow where it underflows, so weights below 2**_NO_CHANCE are made and then cut off
_NO_CHANCE = 2.0**-100


@dataclass(frozen=True)
class Draw:
    """``tokens`` int64 [N]; ``logprobs`` and ``entropy`` (nats) float32 [N] of the distribution drawn from."""

    tokens: Tensor
    logprobs: Tensor
    entropy: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Draw:
        return Draw(self.tokens[rows], self.logprobs[rows], self.entropy[rows])


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
    if scaled.shape[-1] <= _SORTED_WHOLE or torch.compiler.is_compiling():  # there no shape may hang on numbers
        return _last_inside(_descending(scaled), log_total, top_p)[0]
    floor, is_cut_short = _last_inside(scaled.topk(_NUCLEUS_GUESS, dim=-1).values, log_total, top_p)
    rows = is_cut_short.nonzero().squeeze(-1)
    if len(rows):
        floor[rows] = _last_inside(_descending(scaled[rows]), log_total[rows], top_p)[0]
    return floor


def _last_inside(likeliest: Tensor, log_total: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The last logit inside the nucleus [N, 1], and whether [N] it may go on behind the given ones (descending)."""
    chances = (likeliest - log_total).exp()
    is_inside = chances.cumsum(dim=-1) - chances < top_p
    # The cumulative sum never falls, so the nucleus is a prefix; its first token is always in it.
    last = is_inside.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return likeliest.gather(-1, last), is_inside[:, -1]


def _descending(values: Tensor) -> Tensor:
    """Every row sorted; on the CPU by numpy, whose sort is vectorised and several times faster."""
    is_for_numpy = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    if not is_for_numpy or torch.compiler.is_compiling():
        return values.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)


def ban(logits: Tensor, is_banned_row: Tensor, token_ids: Tensor) -> Tensor:
    """Give ``token_ids`` [E] no chance in the rows where ``is_banned_row`` [N] is True; logits [N, V] are changed."""
    logits[:, token_ids] = logits[:, token_ids].masked_fill(is_banned_row.unsqueeze(-1), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Draw:
    """Draw one token a row from logits float32 [N, V] (overwritten) with uniforms [N]; greedy for temperature 0.

    On the CPU rows are taken a few at a time where there are many logits: a second matrix of their size would be in new
    memory every time. Raises ValueError where a row of logits is no distribution (NaN or +inf, or nothing but -inf).
    """
    rows = max(1, _NUMBERS_AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else max(1, len(logits))
    pairs = zip(torch.split(logits, rows), torch.split(uniform, rows), strict=True)
    parts = [_draw(*pair, sampling) for pair in pairs]
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.tokens, part.logprobs, part.entropy) for part in parts), strict=True)
    return Draw(*(torch.cat(column) for column in columns))


def _draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Draw:
    drawn, total = draw_blindly(logits, uniform, sampling)
    check(total)
    return drawn


def check(total: Tensor) -> None:
    """Raise ValueError where the rows' total weights [N] say that a row of logits was no distribution."""
    if not math.isfinite(float(total.sum())):  # at most V a row, unless one is broken
        raise ValueError("the model's logits are NaN or infinite, nothing can be sampled: lower the learning rate")


def draw_blindly(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Draw, Tensor]:
    """``draw`` for all rows at once, in a fixed number of steps that look at no number: one graph, if compiled.

    The second result, each row's total weight [N], is for :func:`check`; a broken row gives some token or other.
    """
    is_filtered = not sampling.is_greedy and (sampling.top_k > 0 or sampling.top_p < 1)
    if is_filtered:
        logits = filter_logits(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    # exp2 is three times as fast as exp: from here on logits are in base 2, relative to the largest.
    factor = _LOG2_E if is_filtered or sampling.is_greedy else _LOG2_E / sampling.temperature
    blocks = _in_blocks(logits)
    peaks = blocks.amax(dim=-1)
    exponents = blocks.sub_(peaks.amax(dim=-1)[:, None, None]).mul_(factor).clamp_(min=_LEAST_EXPONENT)
    weights = F.threshold(exponents.exp2(), _NO_CHANCE, 0.0, inplace=True)
    cumulative = weights.sum(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1]
    tokens = _likeliest(exponents, peaks) if sampling.is_greedy else _invert(weights, cumulative, uniform * total)
    log_total = total.log2()
    picked = exponents.flatten(1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    mean_exponent = exponents.mul_(weights).sum(dim=(-2, -1)) / total
    return Draw(tokens, (picked - log_total) / _LOG2_E, (log_total - mean_exponent) / _LOG2_E), total


def _in_blocks(logits: Tensor) -> Tensor:
    """Logits [N, V] as [N, V/128, 128], a view where V divides; otherwise the last block is filled up with -inf."""
    missing = -logits.shape[-1] % _BLOCK
    whole = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    return whole.view(whole.shape[0], -1, _BLOCK)


def _likeliest(exponents: Tensor, peaks: Tensor) -> Tensor:
    """The first token with the largest logit, int64 [N]; in two levels because argmax over V is slow."""
    block = peaks.argmax(dim=-1)
    inside = exponents[torch.arange(len(block), device=block.device), block].argmax(dim=-1)
    return block * _BLOCK + inside


def _invert(weights: Tensor, cumulative: Tensor, target: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``target`` [N], which lies below the total; int64 [N].

    ``cumulative`` [N, V/128] sums up whole blocks of ``weights`` [N, V/128, 128]. The token's weight is never 0.
    """
    target = target.unsqueeze(-1)
    # The clamps are for NaN, which is larger than everything: the look at the totals comes later.
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1)
    before = cumulative.gather(-1, (block - 1).clamp(min=0)).where(block > 0, 0.0)
    inside = weights.gather(1, block.unsqueeze(-1).expand(-1, 1, _BLOCK)).squeeze(1).cumsum(dim=-1)
    # Rounding may put the target at the very end of the block, behind its last token: step back by one bit.
    target = torch.minimum(target - before, inside[:, -1:] * (1 - 2.0**-_UNIFORM_BITS))
    return (block * _BLOCK + torch.searchsorted(inside, target, right=True).clamp_(max=_BLOCK - 1)).squeeze(-1)
