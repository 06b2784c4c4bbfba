"""Prompts as people have them, as a list: lists, tuples, ``datasets`` rows, columns. What cannot be one is refused.

A run draws prompts by their index, and a resumed run draws the same ones. So what is read only once, or has no order,
is refused, with the remedy in the error. This module knows containers, nothing about tokens or tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

_WANTED = "it must be a non-empty list of strings, token ids, chat messages or dicts"
_TABLES = {"to_dicts": "to_dicts()", "to_pylist": "to_pylist()", "to_dict": 'to_dict("records")'}


def listed(values: Any, *, name: str = "prompts") -> list[Any]:
    """The items of anything that has a length, an order and items: a list, a tuple, a dataset, a column, dict views.

    ``name``: what to call them in errors. Raises ValueError in one line, with the remedy, for what holds no items (a
    string, a number), one row alone, a table, a batch that is padded, and what has no length or no order; also for no
    items at all.
    """
    if remedy := _remedy(values):
        shown = f"{values!r:.60}".replace("\n", " ")
        raise ValueError(f"{name}={shown} is {kind(values)}: {remedy}")
    try:
        length = len(values)
    except TypeError as error:  # an array or a tensor of no dimensions
        raise ValueError(f"{name}={values!r:.60} is {kind(values)}: {_WANTED}") from error
    items = list(islice(values, length + 1)) if hasattr(values, "__iter__") else [values[i] for i in range(length)]
    if not items:
        raise ValueError(f"{name}={values!r:.60} is empty: {_WANTED}")
    if len(items) != length:
        found = f"{len(items)} items" if len(items) < length else "more items"
        raise ValueError(f"{name} is {kind(values)} of length {length} that gives {found}: pass a list")
    return items


def _remedy(values: Any) -> str:
    """What to do instead, for a value that cannot be a list of prompts; else ""."""
    if isinstance(values, Mapping):
        return _mapping_remedy(values)
    if hasattr(values, "columns"):
        for method, call in _TABLES.items():
            if hasattr(values, method):
                return f"pass its rows, a list of dicts, by its method .{call}"
    if getattr(values, "ndim", 1) > 1:
        return "its short rows hold padding: pass lists of token ids without padding"
    if isinstance(values, Iterator):
        return "it can be read only once, and a resumed run reads it again: pass list(…) of it"
    if isinstance(values, set | frozenset):
        return "it has no order, and a resumed run would draw other prompts: pass a list, such as sorted(…)"
    if hasattr(values, "__iter__") and not hasattr(values, "__len__"):
        return f"it has no length, so it may never end: pass list(…) of it ({_WANTED})"
    has_items = hasattr(values, "__len__") and (hasattr(values, "__iter__") or hasattr(values, "__getitem__"))
    return _WANTED if isinstance(values, str | bytes | bytearray | memoryview) or not has_items else ""


def _mapping_remedy(values: Mapping[Any, Any]) -> str:
    if "input_ids" in values:
        return "pass lists of token ids without padding, or the strings and the tokenizer"
    if "prompt" in values:
        return "one row goes into a list: pass [row]; of columns pass the rows, a dict for each prompt"
    names = ", ".join(repr(str(key)) for key in islice(values, 3))
    return f"{_WANTED}; if it holds the splits of a dataset, pass one of them ({names})"


def kind(value: Any) -> str:
    """What a value is, for an error: its type, with the number of dimensions where it is an array or a tensor."""
    dimensions = getattr(value, "ndim", None)
    is_array = isinstance(dimensions, int) and not hasattr(value, "columns")
    name = f"{dimensions}-D {type(value).__name__}" if is_array else type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
