"""Fields of frozen dataclasses, held against their annotations and their bounds.

A wrong value is a ``ValueError`` that names the class, the field, the value and the remedy. This module knows no field.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .surrogates import refuse_surrogates

LARGEST_WHOLE = 2**63  # whole numbers below it fit torch's int64
LARGEST_FLOAT = 1e15  # its square, times a sum over tokens, stays below the 3e38 at which float32 ends


def require(condition: bool, config: Any, name: str, remedy: str) -> None:
    """Raise a ValueError that names the field, its value and the remedy."""
    if not condition:
        raise ValueError(f"{_named(config, name, getattr(config, name))} {remedy}")


def _named(config: Any, name: str, value: Any) -> str:
    """A field and its value, for an error; a long value is cut."""
    return f"{type(config).__name__}.{name}={value!r:.200}"


def check_types(config: Any) -> None:
    """Hold every field of a dataclass against its annotation; ints pass as floats and lists as tuples, nothing else."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, field.name, value)
        if isinstance(value, int) and abs(value) >= LARGEST_WHOLE:
            raise ValueError(f"{_named(config, field.name, value)} must be below 2**63")
        if isinstance(value, int) and not isinstance(value, bool) and accepts(1.0, hint) and not accepts(1, hint):
            value = float(value)
            object.__setattr__(config, field.name, value)
        if not accepts(value, hint):
            raise ValueError(f"{_named(config, field.name, value)} must be {describe(hint)}")
        refuse_surrogates(value, _named(config, field.name, value))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{_named(config, field.name, value)} must be finite")
        if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
            raise ValueError(f"{_named(config, field.name, value)} must be at most {LARGEST_FLOAT:g}")


def accepts(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation made of plain types, Literal, unions and homogeneous tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(accepts(item, arguments[0]) for item in value)
    if arguments:
        return any(accepts(value, option) for option in arguments)
    return type(value) is hint


def describe(hint: Any) -> str:
    """An annotation in words, for error messages."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        return f"a tuple of {describe(arguments[0])}"
    if arguments:
        return " or ".join(describe(option) for option in arguments)
    return "None" if hint is type(None) else str(getattr(hint, "__name__", hint))
