"""Log-probs and entropy from hidden rows and a linear output layer. The logits are never stored.

Logits are computed tile by tile (some rows x some tokens of the vocabulary). Each tile is added to running sums, as
attention does in FlashAttention (Dao et al. 2022). The backward pass computes each tile again and adds its part of the
gradient. So memory does not grow with the vocabulary, except for the weight's own gradient, and every pass over a tile
finds it in the CPU's cache. If the weight is frozen, the forward pass also sums up the gradient of the rows, and
no tile is computed twice.

This module knows one matrix product and one softmax. It knows no filters and no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .distribution import ban_early_eos_
from .precision import statistics_dtype

_TILE_WIDTH = 2048  # tokens of the vocabulary in a tile
_LOG2_E = math.log2(math.e)  # tiles are in base 2: exp2 is three times as fast as exp on the CPU
_NO_CHANCE = -1e30  # the logit of a token without a chance; unlike -inf it can be multiplied with 0


@dataclass(frozen=True)
class OutputDistribution:
    """What is done to the logits before the softmax, and how they are computed.

    ``temperature`` divides them. ``banned_ids`` have no chance in the rows where ``is_banned`` bool [N] is True.
    ``dtype`` is that of the matrix products; everything else is in float32 (float64 for float64). ``chunk_rows`` is
    the number of rows in a tile.
    """

    temperature: float
    banned_ids: tuple[int, ...]
    is_banned: Tensor
    dtype: torch.dtype
    chunk_rows: int


def output_logprobs(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    distribution: OutputDistribution,
    *,
    has_entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Log-prob of one token a row and the entropy of the row (nats), both [N], for the logits rows @ weight.T + bias.

    rows [N, D], weight [V, D], bias [V], tokens int64 [N]. Both are differentiable once, with respect to rows, weight
    and bias; the entropy only with ``has_entropy_gradient``.
    """
    is_weight_frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    is_summed_ahead = torch.is_grad_enabled() and rows.requires_grad and is_weight_frozen and not has_entropy_gradient
    result: tuple[Tensor, Tensor] = _OutputLogprobs.apply(  # type: ignore[no-untyped-call]
        rows, weight, bias, tokens, distribution, has_entropy_gradient, is_summed_ahead
    )
    return result


class _OutputLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        distribution: OutputDistribution,
        has_entropy_gradient: bool,
        is_summed_ahead: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(rows.device.type, enabled=False):
            totals = _Totals(_Tiles(rows, weight, bias, tokens, distribution), has_products=is_summed_ahead)
        logprobs, entropy = totals.logprobs(), totals.entropy()
        ctx.distribution, ctx.is_summed_ahead = distribution, is_summed_ahead
        ctx.has_entropy_gradient = has_entropy_gradient
        if is_summed_ahead:
            ctx.save_for_backward(totals.row_gradient(logprobs).to(rows.dtype))
        else:
            ctx.save_for_backward(rows, weight, bias, tokens, totals.peak, totals.weights.log2(), entropy)
        if not has_entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.is_summed_ahead:
            (row_gradient,) = ctx.saved_tensors
            return (row_gradient * grad_logprobs.unsqueeze(-1).to(row_gradient.dtype), *[None] * 6)
        rows, weight, bias, tokens, *statistics = ctx.saved_tensors
        if not ctx.has_entropy_gradient:
            grad_entropy = None
        with torch.autocast(rows.device.type, enabled=False):
            tiles = _Tiles(rows, weight, bias, tokens, ctx.distribution)
            gradients = _gradients(tiles, _Statistics(*statistics), grad_logprobs, grad_entropy, ctx.needs_input_grad)
        return (*gradients, None, None, None, None)


@dataclass(frozen=True)
class _Tile:
    """``logits`` [n, w] of the rows ``rows`` and the tokens ``ids`` (slices), in base 2, banned tokens at -1e30.

    ``inputs`` [n, D] and ``weight`` [w, D] are what they were computed from. ``has_own`` bool [n, 1] says whether a
    row's own token is in the tile, ``own`` int64 [n, 1] in which column.
    """

    logits: Tensor
    rows: slice
    ids: slice
    inputs: Tensor
    weight: Tensor
    own: Tensor
    has_own: Tensor


class _Tiles:
    """All tiles of a matrix of logits, one block of the vocabulary after another."""

    def __init__(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, distribution: OutputDistribution
    ) -> None:
        self.dtype = distribution.dtype
        self.sum_dtype = statistics_dtype(self.dtype)
        self.inputs = rows.detach().to(self.dtype)
        self.weight, self.bias, self.tokens = weight.detach(), bias, tokens
        self.distribution = distribution
        self.factor = _LOG2_E / distribution.temperature

    def __iter__(self) -> Iterator[_Tile]:
        size = self.distribution.chunk_rows
        for first in range(0, self.weight.shape[0], _TILE_WIDTH):
            ids = slice(first, min(first + _TILE_WIDTH, self.weight.shape[0]))
            weight = self.weight[ids].to(self.dtype)
            for start in range(0, len(self.tokens), size):
                yield self._tile(slice(start, start + size), ids, weight)

    def _tile(self, rows: slice, ids: slice, weight: Tensor) -> _Tile:
        inputs = self.inputs[rows]
        bias = self.bias[ids].to(self.dtype) if self.bias is not None else None
        logits = F.linear(inputs, weight, bias).to(self.sum_dtype).mul_(self.factor)
        if bias is not None:  # -inf there takes a token's chance; 0 times -inf would be nan
            logits.clamp_(min=_NO_CHANCE)
        banned = (token - ids.start for token in self.distribution.banned_ids)
        ban_early_eos_(logits, self.distribution.is_banned[rows], banned, no_chance=_NO_CHANCE)
        own = (self.tokens[rows] - ids.start).unsqueeze(-1)
        has_own = (own >= 0) & (own < logits.shape[-1])
        return _Tile(logits, rows, ids, inputs, weight, own.clamp(0, logits.shape[-1] - 1), has_own)


class _Totals:
    """Sums over the vocabulary, relative to the largest logit so far (``peak``): [N, 1] each, ``products`` [N, D].

    With p = 2^(logit - peak), ``weights`` sums p, ``moments`` sums p (logit - peak), and ``products`` sums p W over
    all tokens but the row's own. With its own token in it, the rest would be lost in rounding where that token's
    probability is near 1.
    """

    def __init__(self, tiles: _Tiles, *, has_products: bool) -> None:
        self.tiles = tiles
        zeros = tiles.inputs.new_zeros((len(tiles.tokens), 1), dtype=tiles.sum_dtype)
        self.peak, self.weights, self.moments, self.picked = (zeros.clone() for _ in range(4))
        self.peak.fill_(_NO_CHANCE)
        self.products = zeros.repeat(1, tiles.inputs.shape[1]) if has_products else None
        for tile in tiles:
            self._add(tile)

    def _add(self, tile: _Tile) -> None:
        rows, logits = tile.rows, tile.logits
        self.picked[rows] = torch.where(tile.has_own, logits.gather(1, tile.own), self.picked[rows])
        old_peak = self.peak[rows]
        peak = torch.maximum(old_peak, logits.amax(dim=1, keepdim=True))
        shift = old_peak - peak
        decay = shift.exp2()
        distances = logits.sub_(peak)
        chances = distances.exp2()
        moments = decay * (self.moments[rows] + self.weights[rows] * shift)
        self.weights[rows] = decay * self.weights[rows] + chances.sum(dim=1, keepdim=True)
        self.moments[rows] = moments + distances.mul_(chances).sum(dim=1, keepdim=True)
        self.peak[rows] = peak
        if self.products is not None:
            chances.scatter_(1, tile.own, chances.gather(1, tile.own).masked_fill(tile.has_own, 0.0))
            self.products[rows] = (decay * self.products[rows]).add_(chances.to(tile.weight.dtype) @ tile.weight)

    def logprobs(self) -> Tensor:
        """Natural logarithm of the probability of each row's own token, [N]; -inf for a banned one."""
        logprobs = ((self.picked - self.peak - self.weights.log2()) / _LOG2_E).squeeze(-1)
        return logprobs.masked_fill(self.picked.squeeze(-1) <= _NO_CHANCE, -torch.inf)

    def entropy(self) -> Tensor:
        """The entropy of each row in nats, [N]."""
        return ((self.weights.log2() - self.moments / self.weights) / _LOG2_E).squeeze(-1)

    def row_gradient(self, logprobs: Tensor) -> Tensor:
        """d log-prob / d row, [N, D]: (the own token's weights - the mean of all weights) / temperature."""
        assert self.products is not None
        rest = -torch.expm1(logprobs).unsqueeze(-1)  # 1 - p
        own = self.tiles.weight[self.tiles.tokens].to(self.products.dtype)
        return (rest * own - self.products / self.weights) / self.tiles.distribution.temperature


@dataclass(frozen=True)
class _Statistics:
    """Of each row: the largest logit and log2 of the sum of 2^(logit - peak), [N, 1], and the entropy in nats, [N].

    The first two are subtracted from a logit one after the other. Their sum would lose the digits that 1 - p needs.
    """

    peak: Tensor
    log_weights: Tensor
    entropy: Tensor


def _gradients(
    tiles: _Tiles,
    statistics: _Statistics,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of rows, weight and bias; None if not needed. :func:`_logit_gradient` has the formula.

    Sums over the vocabulary are in float32 (float64), sums over chunks of rows in the dtype of the weight or bias.
    """
    needs_rows, needs_weight, needs_bias = needs[:3]
    of_rows = torch.zeros_like(tiles.inputs, dtype=tiles.sum_dtype) if needs_rows else None
    of_weight = torch.zeros_like(tiles.weight) if needs_weight else None
    of_bias = torch.zeros_like(tiles.bias) if needs_bias and tiles.bias is not None else None
    for tile in tiles:
        gradient = _logit_gradient(tile, statistics, grad_logprobs, grad_entropy)
        gradient.div_(tiles.distribution.temperature)
        if of_bias is not None:
            of_bias[tile.ids] += gradient.sum(dim=0)
        gradient = gradient.to(tiles.dtype)
        if of_rows is not None:
            _add_product(of_rows[tile.rows], gradient, tile.weight)
        if of_weight is not None:
            _add_product(of_weight[tile.ids], gradient.T, tile.inputs)
    return of_rows, of_weight, of_bias


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in one call if their dtypes are the same."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _logit_gradient(tile: _Tile, statistics: _Statistics, grad_logprobs: Tensor, grad_entropy: Tensor | None) -> Tensor:
    """The gradient of the tile's logits (after temperature), [n, w]: g (1[own] - p) - h p (log p + H).

    g and h are the gradients of the log-prob and the entropy, p the probabilities, H the entropy.
    """
    log_chances = tile.logits.sub_(statistics.peak[tile.rows]).sub_(statistics.log_weights[tile.rows])
    factors = -grad_logprobs[tile.rows].unsqueeze(-1)
    own = torch.where(tile.has_own, -factors, 0.0)
    chances = log_chances.exp2()
    if grad_entropy is None:
        gradient = chances.mul_(factors)
    else:
        slope = grad_entropy[tile.rows].unsqueeze(-1)
        heights = log_chances.mul_(1 / _LOG2_E).add_(statistics.entropy[tile.rows].unsqueeze(-1))
        gradient = chances.mul_(heights.mul_(-slope).add_(factors))
    return gradient.scatter_add_(1, tile.own, own)
