"""Operations on the rows of a transformers cache: select, repeat and reorder rows, and join two caches.

A cache is changed in place. It has a column for each column of the ids that it was filled with, left padding included.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep the given rows int64 [N], in the given order, repeated as often as named."""
    for layer in cache.layers:
        layer.reorder_cache(rows)  # it is meant for beam search, and is index_select in every kind of layer


def has_all_columns(cache: Any) -> bool:
    """Whether every layer holds one key and value for each column and nothing else, so that columns can be cut."""
    layers = getattr(cache, "layers", [])
    return len(layers) > 0 and all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers)


def append_rows(cache: Any, other: Any) -> None:
    """Append the rows of ``other`` to ``cache``. The narrower one is padded with zeros on the left."""
    for layer, more in zip(cache.layers, other.layers, strict=True):
        layer.keys = _on_top(layer.keys, more.keys)
        layer.values = _on_top(layer.values, more.values)


def _on_top(first: Tensor, second: Tensor) -> Tensor:
    """Keys or values [N, heads, columns, width] of both, one after the other."""
    count, columns = len(first) + len(second), max(first.shape[-2], second.shape[-2])
    both = first.new_zeros(count, first.shape[1], columns, first.shape[-1])
    both[: len(first), :, columns - first.shape[-2] :] = first
    both[len(first) :, :, columns - second.shape[-2] :] = second
    return both


def cut_left(cache: Any, columns: int) -> None:
    """Drop the first columns."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., columns:, :], layer.values[..., columns:, :]


def cache_bytes(cache: Any) -> int:
    """The size in bytes of the keys and values that a cache holds now; 0 if it is unknown."""
    tensors = [getattr(layer, name, None) for layer in getattr(cache, "layers", []) for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
