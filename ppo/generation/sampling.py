"""The draw: one token a row from logits, by the distribution of :mod:`ppo.lm.distribution`.

To draw a token, the cumulative distribution is inverted at one uniform number, which is fixed beforehand for each
(request, token). So neither the other requests in a batch nor a request's place among them can change what is
sampled. This module knows nothing about models, caches or requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Sampling
from ..lm.distribution import ban_early_eos_, bans_eos, divisor, has_filters, next_token_logits

_BLOCK = 128  # the cumulative distribution is inverted in two levels: over blocks, then inside one block
_UNIFORM_BITS = 24  # what float32 resolves; the largest uniform is 1 - 2**-24
_NUMBERS_AT_ONCE = 2**19  # logits; 32 rows of 49,152 took 7.6 ms at once, 3.0 ms in parts of this size
_LOG2_E = math.log2(math.e)
_LEAST_EXPONENT = -115.0  # exp2 is slow where it underflows: smaller exponents are raised to this
_NO_CHANCE = 2.0**-100  # and weights up to this are set to 0


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

    The generator is counter-based (Philox), and its key is (seed, request id). So a request's numbers depend on nothing
    else, and a longer response only adds numbers at the end.
    """
    mask = 2**64 - 1
    rows = np.empty((len(request_ids), length), dtype=np.uint64)
    for row, request_id in enumerate(request_ids):
        key = np.array([seed & mask, request_id & mask], dtype=np.uint64)
        rows[row] = np.random.Philox(key=key).random_raw(length)
    return torch.from_numpy(((rows >> np.uint64(64 - _UNIFORM_BITS)) * 2.0**-_UNIFORM_BITS).astype(np.float32))


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling, is_early: Tensor | None = None) -> Draw:
    """Draw one token a row from logits float32 [N, V] (overwritten) with uniforms [N]; greedy for temperature 0.

    No EOS is drawn in the rows where ``is_early`` bool [N] is True; None means that there is no such row.
    Raises ValueError if a row of logits is no distribution (NaN or +inf, or nothing but -inf).
    """
    drawn, total = draw_in_parts(logits, uniform, sampling, is_early)
    check(total)
    return drawn


def draw_in_parts(
    logits: Tensor, uniform: Tensor, sampling: Sampling, is_early: Tensor | None = None
) -> tuple[Draw, Tensor]:
    """:func:`draw` without its check: the second result, each row's total weight [N], is for :func:`read`.

    On the CPU many logits are handled a few rows at a time, because a second matrix of their size would be in new
    memory every time.
    """
    rows = max(1, _NUMBERS_AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else max(1, len(logits))
    slices = [slice(start, start + rows) for start in range(0, max(1, len(logits)), rows)]
    parts = [
        draw_blindly(logits[part], uniform[part], sampling, is_early[part] if is_early is not None else None)
        for part in slices
    ]
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.tokens, part.logprobs, part.entropy, total) for part, total in parts), strict=True)
    *drawn, totals = (torch.cat(column) for column in columns)
    return Draw(*drawn), totals


class BrokenLogitsError(ValueError):
    """A row of logits is no distribution. A training says at which step."""


def check(total: Tensor) -> None:
    """Raise BrokenLogitsError if the rows' total weights [N] show that a row of logits was no distribution."""
    read(total.new_empty(0), total)


def read(values: Tensor, total: Tensor) -> list[Any]:
    """Numbers [M] that came out of a draw, as a list, after :func:`check` of its total weights [N].

    Both come in one copy, so the host waits for the device once.
    """
    is_finite = total.sum(dim=0, keepdim=True) < math.inf  # at most V for each row, unless one is broken; NaN is not
    *numbers, is_sound = torch.cat([values, is_finite]).tolist()
    if not is_sound:
        raise BrokenLogitsError(
            "the model's logits are NaN or infinite, so nothing can be sampled: look at its weights"
        )
    return numbers


def draw_blindly(
    logits: Tensor, uniform: Tensor, sampling: Sampling, is_early: Tensor | None = None
) -> tuple[Draw, Tensor]:
    """``draw`` for all rows at once. No step depends on a value, so that it compiles to one graph.

    The second result, each row's total weight [N], is for :func:`check`. A broken row gives an arbitrary token.
    """
    if is_early is not None and bans_eos(sampling):
        ban_early_eos_(logits, is_early, sampling.eos_ids or ())
    # From here on logits are in base 2 and relative to the largest: exp2 is three times as fast as exp.
    if has_filters(sampling):
        logits, factor = next_token_logits(logits, sampling), _LOG2_E
    else:
        factor = _LOG2_E / divisor(sampling)
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
    """Logits [N, V] as [N, V/128, 128]: a view if 128 divides V, else the last block is filled up with -inf."""
    missing = -logits.shape[-1] % _BLOCK
    whole = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    return whole.view(whole.shape[0], -1, _BLOCK)


def _likeliest(exponents: Tensor, peaks: Tensor) -> Tensor:
    """The first token with the largest logit, int64 [N]. It is found in two levels because argmax over V is slow."""
    block = peaks.argmax(dim=-1)
    inside = exponents[torch.arange(len(block), device=block.device), block].argmax(dim=-1)
    return block * _BLOCK + inside


def _invert(weights: Tensor, cumulative: Tensor, target: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``target`` [N], int64 [N]. Its weight is never 0.

    ``target`` lies below the total. ``cumulative`` [N, V/128] sums up whole blocks of ``weights`` [N, V/128, 128].
    """
    target = target.unsqueeze(-1)
    # The clamps keep NaN inside the bounds, since NaN counts as larger than any number; ``check`` reports it later.
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1)
    before = cumulative.gather(-1, (block - 1).clamp(min=0)).where(block > 0, 0.0)
    inside = weights.gather(1, block.unsqueeze(-1).expand(-1, 1, _BLOCK)).squeeze(1).cumsum(dim=-1)
    # Rounding may put the target at the very end of the block, after its last token: step back by one bit.
    target = torch.minimum(target - before, inside[:, -1:] * (1 - 2.0**-_UNIFORM_BITS))
    return (block * _BLOCK + torch.searchsorted(inside, target, right=True).clamp_(max=_BLOCK - 1)).squeeze(-1)
