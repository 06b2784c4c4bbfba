"""Attention: over whole prompts at once (prefill), or from one new token a row over the cache (decoding).

Both store keys and values once per key/value head. Several query heads read the same head; it is not copied for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import KVCache
from .transformer import Network


class PrefillAttention:
    """Causal attention inside N prompts of P columns each, padded on the *right*.

    Padding needs no mask: it comes after all real tokens, and nobody reads what is computed for it. Keys and values
    are kept in ``block`` [layers, 2, N, kv heads, P, width].
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
        """The mask of a layer with a window; None for plain causal attention."""
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


@dataclass(frozen=True)
class Fed:
    """What a decoding step is fed: of M rows the last tokens, their positions and their requests, int64 [M] each.

    ``places``: the positions once more, known to the host, so that no step waits for the device to read them.
    """

    tokens: Tensor
    positions: Tensor
    requests: Tensor
    places: list[int]


class DecodeAttention:
    """One new token for each of the first M rows of the cache. ``aim`` sets their positions before every step."""

    def __init__(self, network: Network, cache: KVCache) -> None:
        self._network = network
        self._cache = cache
        # A window that no sequence outgrows hides nothing.
        self._windows = [
            block.window if block.window is not None and block.window < cache.capacity else None
            for block in network.blocks
        ]
        self._masks: dict[int | None, Tensor] = {}
        self._columns = 0
        self._positions = torch.empty(0, dtype=torch.long, device=network.device)
        self._places: list[int] = []
        self._column: int | None = None

    def aim(self, positions: Tensor, places: list[int]) -> None:
        """Set the new tokens' positions int64 [M], inside the cache; ``places``: the same, known to the host.

        In most steps every row has moved on by one. Then the masks of the last step are updated, not made again.
        """
        is_next = self._columns == self._cache.columns and places == [place + 1 for place in self._places]
        self._positions, self._places, self._columns = positions.clone(), places, self._cache.columns
        if is_next:
            self._column = self._column + 1 if self._column is not None else None
            for window, mask in self._masks.items():
                self._extend(mask, window)
            return
        self._column = places[0] if len(set(places)) == 1 else None
        self._masks = {window: self._mask(window) for window in set(self._windows)}

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        self._cache.write(layer, self._positions, key_value, self._column)
        keys, values = self._cache.read(layer, len(query))
        return attended(self._network, layer, query, keys, values, self._masks[self._windows[layer]])

    def _mask(self, window: int | None) -> Tensor:
        return past_mask(self._network, self._positions, self._cache.columns, window)

    def _extend(self, mask: Tensor, window: int | None) -> None:
        """Uncover the newest column of each row, and hide the one that has left the window."""
        rows = mask.view(len(self._positions), -1, self._columns)
        if self._column is not None:
            rows[..., self._column] = 0
            if window is not None and self._column >= window:
                rows[..., self._column - window] = -torch.inf
            return
        index = torch.arange(len(rows), device=rows.device)
        rows[index, :, self._positions] = 0
        if window is not None and max(self._places) >= window:
            left = (self._positions - window).clamp(min=0)
            is_out = (self._positions >= window).unsqueeze(-1)
            rows[index, :, left] = rows[index, :, left].masked_fill(is_out, -torch.inf)


def past_mask(network: Network, positions: Tensor, columns: int, window: int | None) -> Tensor:
    """0 in the columns that a new token at ``positions`` int64 [M] sees, else -inf: [M * kv heads, 1, columns]."""
    column = torch.arange(columns, device=positions.device)
    position = positions.unsqueeze(-1)
    hidden = column > position
    if window is not None:
        hidden |= column <= position - window
    mask = torch.zeros(hidden.shape, dtype=network.dtype, device=hidden.device)
    mask.masked_fill_(hidden, -torch.inf)
    return mask.repeat_interleave(network.num_kv_heads, dim=0).unsqueeze(1)


def attended(network: Network, layer: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The attention output of M new tokens, [M, heads * width].

    query [M, heads, width], keys (transposed) [M * kv heads, width, columns], values [M * kv heads, columns, width],
    mask [M * kv heads, 1, columns].
    """
    # There is one score matrix for each key/value head: its query heads are the rows of one product.
    groups = network.num_heads // network.num_kv_heads
    grouped = query.reshape(-1, groups, network.head_width)
    scores = torch.baddbmm(mask.expand(-1, groups, -1), grouped, keys, alpha=network.blocks[layer].scale)
    return torch.bmm(torch.softmax(scores, dim=-1, out=scores), values).view(len(query), -1)


def prefill(
    network: Network, ids: Tensor, lengths: Sequence[int], tails: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Run sequences int64 [N, P], padded on the right, of N ``lengths``.

    Returns keys and values [layers, 2, N, kv heads, P, width], and the hidden states of the last ``tails`` real tokens
    of each sequence (N numbers, by default 1): [sum of tails, H], one sequence after another.
    """
    count, width = ids.shape
    attention = PrefillAttention(network, count, width)
    positions = torch.arange(width, device=ids.device).repeat(count)
    ends = zip(lengths, tails if tails is not None else [1] * count, strict=True)
    wanted = [row * width + place for row, (end, tail) in enumerate(ends) for place in range(end - tail, end)]
    hidden = network(
        ids.flatten(), positions, attention, wanted=torch.tensor(wanted, dtype=torch.long, device=ids.device)
    )
    return attention.block, hidden


def decode(network: Network, attention: DecodeAttention, fed: Fed) -> Tensor:
    """Feed one more token to each of the first M rows of the cache: hidden states [M, H].

    The cache must have a column for every position.
    """
    attention.aim(fed.positions, fed.places)
    return network(fed.tokens, fed.positions, attention)
