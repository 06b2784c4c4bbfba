"""Rows of a transformers cache: dropped, repeated, reordered, and those of two caches put together.

A cache is changed in place. Its columns are those of the ids it was filled with, padding on the left included.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep the given rows int64 [N], in the given order, repeated as often as named."""
    for layer in cache.layers:
        layer.reorder_cache(rows)  # meant for beams, it is index_select in every kind of layer


def has_all_columns(cache: Any) -> bool:
    """Whether every layer keeps one key and value a column and nothing else, so that columns can be put in and cut."""
    layers = getattr(cache, "layers", [])
    return len(layers) > 0 and all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers)


def append_rows(cache: Any, other: Any) -> None:
    """Put the rows of ``other`` behind those of ``cache``, both padded with zeros on the left to the wider one."""
    for layer, more in zip(cache.layers, other.layers, strict=True):
        layer.keys = _on_top(layer.keys, more.keys)
        layer.values = _on_top(layer.values, more.values)


def _on_top(first: Tensor, second: Tensor) -> Tensor:
    """Keys or values [N, heads, columns, width] of both."""
    count, columns = len(first) + len(second), max(first.shape[-2], second.shape[-2])
    both = first.new_zeros(count, first.shape[1], columns, first.shape[-1])
    both[: len(first), :, columns - first.shape[-2] :] = first
    both[len(first) :, :, columns - second.shape[-2] :] = second
    return both


def cut_left(cache: Any, columns: int) -> None:
    """Forget the first columns."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., columns:, :], layer.values[..., columns:, :]


def cache_bytes(cache: Any) -> int:
    """The size of the keys and values that a cache holds now; 0 where that cannot be told."""
    tensors = [getattr(layer, name, None) for layer in getattr(cache, "layers", []) for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
