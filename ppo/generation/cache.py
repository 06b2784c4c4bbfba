"""The cache: keys and values of all layers, preallocated, a row per sequence; every sequence starts at column 0.

The rows in use are the first ones, so that a step works on views. When a sequence ends, the last row in use moves to
its place. There are only about as many columns as the longest sequence needs, and more are added now and then. So a
step reads memory from end to end, which was measured to be two to three times as fast as to read the first columns of
wider rows. Behind a sequence's end stand zeros or what an earlier sequence left. They are always finite: masks hide
them, but a mask cannot repair a NaN. A row that was never in use is never touched, because new memory costs more time
than all the rest: 18 ms for 43 MiB.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .free_memory import free_memory
from .transformer import Network

_SHARE_OF_FREE_MEMORY = 0.8
_MULTIPLE = 8  # columns come in multiples of this: oneDNN builds a new kernel for every new shape
_MORE = 24  # least spare columns; a wider cache makes every step slower, adding columns takes as long as two steps


def wider(columns: int) -> int:
    """How many columns to make if ``columns`` are needed: somewhat more, so that columns are added seldom."""
    return _rounded(columns + max(_MORE, columns // 8))


class KVCache:
    """Keys and values of ``rows`` sequences of at most ``capacity`` tokens. ``reserve`` makes room for tokens.

    A layer is a view [2, rows, heads, columns, width] of a buffer that is large enough for the capacity. There is one
    buffer more than there are layers: to add columns, each layer is copied into the buffer that is free. ``widen``
    says how many columns to make for so many needed ones.
    """

    def __init__(self, network: Network, *, rows: int, capacity: int, widen: Callable[[int], int] = wider) -> None:
        self._shape = (2, rows, network.num_kv_heads)
        self._head_width = network.head_width
        self.capacity = capacity
        self._widen = widen
        self._rows = torch.arange(rows, device=network.device)
        size = math.prod(self._shape) * capacity * network.head_width
        count = len(network.blocks)
        # Each has its own storage: a compiled step may write to a layer only if no other layer can share the memory.
        self._buffers = [torch.empty(size, dtype=network.dtype, device=network.device) for _ in range(count + 1)]
        self.columns = 0
        self._layers = [self._view(buffer, 0) for buffer in self._buffers[:count]]
        self._views: list[tuple[Tensor, Tensor]] = []
        self._views_for = (0, 0)

    @property
    def layers(self) -> list[Tensor]:
        """Keys and values [2, rows, heads, columns, width] of each layer. They are valid until columns are added."""
        return self._layers

    @property
    def nbytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)

    def reserve(self, columns: int, rows: int) -> None:
        """Make room for sequences of ``columns`` tokens. The first ``rows`` rows keep what they hold."""
        if columns <= self.columns:
            return
        width = min(self._widen(columns), self.capacity)
        for index, narrow in enumerate(self._layers):
            wide = self._view(self._buffers[-1], width)
            wide[:, :rows, :, : self.columns] = narrow[:, :rows]
            wide[:, :rows, :, self.columns :] = 0
            self._layers[index] = wide
            self._buffers[index], self._buffers[-1] = self._buffers[-1], self._buffers[index]
        self.columns = width

    def write(self, layer: int, positions: Tensor, key_value: Tensor, column: int | None) -> None:
        """Store one token for each of the first M rows: ``positions`` int64 [M], ``key_value`` [M, 2, heads, width].

        ``column`` is the position of all rows, if they have the same one: a slice is cheaper to write than scattered
        places.
        """
        rows = len(positions)
        if column is not None:
            self._layers[layer][:, :rows, :, column] = key_value.transpose(0, 1)
        else:
            self._layers[layer][:, self._rows[:rows], :, positions] = key_value

    def read(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """Of the first rows: keys [rows * heads, width, columns], transposed, values [rows * heads, columns, width]."""
        if self._views_for != (rows, self.columns):  # views cost time too, and the number of rows seldom changes
            parts = [layer[:, :rows].flatten(1, 2) for layer in self._layers]
            self._views = [(keys.transpose(1, 2), values) for keys, values in parts]
            self._views_for = (rows, self.columns)
        return self._views[layer]

    def insert(self, row: int, block: Tensor, indices: list[int], length: int) -> None:
        """Copy sequences of a prefilled block [layers, 2, sequences, heads, P, width] into the rows from ``row`` on.

        ``indices`` are the sequences; the first ``length`` columns of each are copied.
        """
        first, count = indices[0], len(indices)
        is_run = indices == list(range(first, first + count))
        chosen = block[:, :, first : first + count] if is_run else block[:, :, indices]
        for layer, prefilled in zip(self._layers, chosen, strict=True):
            rows = layer[:, row : row + count]
            rows[..., :length, :] = prefilled[..., :length, :]
            rows[..., length:, :] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Overwrite row ``target`` with the first ``length`` columns of row ``source``."""
        for layer in self._layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]

    def _view(self, buffer: Tensor, columns: int) -> Tensor:
        shape = (*self._shape, columns, self._head_width)
        return buffer[: math.prod(shape)].view(shape)


def _rounded(columns: int) -> int:
    return -(-columns // _MULTIPLE) * _MULTIPLE


def slots_that_fit(network: Network, slots: int, capacity: int) -> int:
    """``slots``, or fewer (at least 1, with a warning) if their cache would not fit into free memory."""
    per_token = 2 * (len(network.blocks) + 1) * network.num_kv_heads * network.head_width
    bytes_per_slot = per_token * capacity * network.embedding.element_size()
    free = free_memory(network.device)
    if free is None or slots * bytes_per_slot <= _SHARE_OF_FREE_MEMORY * free:
        return slots
    fitting = max(1, int(_SHARE_OF_FREE_MEMORY * free) // bytes_per_slot)
    if fitting >= slots:
        return slots
    warnings.warn(
        f"slots={slots} need a cache of {slots * bytes_per_slot / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free: "
        f"sampling {fitting} sequences at a time",
        RuntimeWarning,
        stacklevel=2,
    )
    return fitting
