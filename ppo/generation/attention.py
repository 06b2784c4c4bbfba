"""How tokens see their past: whole prompts at once, or one new token a row over the cache.

Both store keys and values once per key/value head; several query heads read the same head without it being repeated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import KVCache
from .transformer import Network


class PrefillAttention:
    """Causal attention inside N prompts of P columns each, padded on the *right*.

    Padding needs no mask: it comes after everything real, and nobody reads what it computes. Keys and values are kept
    in ``block`` [layers, 2, N, kv heads, P, width].
    """

    def __init__(self, network: Network, count: int, width: int) -> None:
        self._network = network
        self._shape = (count, width)
        self._masks: dict[int, Tensor] = {}
        shape = (len(network.blocks), 2, count, network.num_kv_heads, width, network.head_width)
        self.block = torch.empty(shape, dtype=network.dtype, device=network.device)

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        block = self._network.blocks[layer]
        self.block[layer] = torch.unflatten(key_value, 0, self._shape).permute(2, 0, 3, 1, 4)
        mask = self._window_mask(block.window)
        attended = F.scaled_dot_product_attention(
            torch.unflatten(query, 0, self._shape).transpose(1, 2),
            self.block[layer, 0],
            self.block[layer, 1],
            attn_mask=mask,
            is_causal=mask is None,
            scale=block.scale,
            enable_gqa=self._network.num_heads != self._network.num_kv_heads,
        )
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)

    def _window_mask(self, window: int | None) -> Tensor | None:
        """None where plain causal attention is meant."""
        width = self._shape[1]
        if window is None or window >= width:
            return None
        if window not in self._masks:
            column = torch.arange(width, device=self._network.device)
            distance = column.unsqueeze(-1) - column
            hidden = (distance < 0) | (distance >= window)
            zeros = torch.zeros(width, width, dtype=self._network.dtype, device=self._network.device)
            self._masks[window] = zeros.masked_fill(hidden, -torch.inf)
        return self._masks[window]


class DecodeAttention:
    """One new token for each of the first M rows of the cache, at ``positions`` int64 [M]."""

    def __init__(self, network: Network, cache: KVCache, positions: Tensor) -> None:
        self._network = network
        self._cache = cache
        self._positions = positions
        first, last = (int(position) for position in positions.aminmax())
        self._column = last if first == last else None
        # One score matrix a key/value head: its query heads are the rows of one product.
        self._groups = (len(positions) * network.num_kv_heads, network.num_heads // network.num_kv_heads)
        windows = {block.window for block in network.blocks}
        self._masks = {window: self._mask(window) for window in windows}

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        block = self._network.blocks[layer]
        self._cache.write(layer, self._positions, key_value, self._column)
        keys, values = self._cache.read(layer, len(self._positions))
        grouped = query.reshape(*self._groups, self._network.head_width)
        scores = torch.baddbmm(self._masks[block.window], grouped, keys.transpose(1, 2), alpha=block.scale)
        attended = torch.bmm(scores.softmax(dim=-1), values)
        return attended.view(len(self._positions), -1)

    def _mask(self, window: int | None) -> Tensor:
        """0 where a row's new token may look, -inf elsewhere: [M * kv heads, query heads per kv head, columns]."""
        column = torch.arange(self._cache.columns, device=self._positions.device)
        position = self._positions.unsqueeze(-1)
        hidden = column > position
        if window is not None:
            hidden |= column <= position - window
        mask = torch.zeros(hidden.shape, dtype=self._network.dtype, device=hidden.device)
        mask.masked_fill_(hidden, -torch.inf)
        repeated = mask.repeat_interleave(self._network.num_kv_heads, dim=0)
        return repeated.unsqueeze(1).expand(-1, self._groups[1], -1)


def prefill(network: Network, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Run prompts int64 [N, P], padded on the right, of ``lengths`` int64 [N].

    Returns keys and values [layers, 2, N, kv heads, P, width] and the hidden states [N, H] of the last real tokens.
    """
    count, width = ids.shape
    attention = PrefillAttention(network, count, width)
    positions = torch.arange(width, device=ids.device).expand(count, width)
    last = torch.arange(count, device=ids.device) * width + lengths - 1
    return attention.block, network(ids.flatten(), positions.flatten(), attention, wanted=last)


def decode(network: Network, cache: KVCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """One more token for each of the first M rows: tokens and positions int64 [M] -> hidden states [M, H].

    The cache must have a column for every position.
    """
    return network(tokens, positions, DecodeAttention(network, cache, positions))
