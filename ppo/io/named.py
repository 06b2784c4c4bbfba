"""What messages call a function of somebody's own, and how they describe what it returned.

This module knows names and kinds, nothing about what a function is for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor


def name_of(function: Any) -> str:
    """What a checkpoint calls a function or an object: its ``name`` if it has one, or module and qualified name."""
    if isinstance(function, partial):
        return name_of(function.func)
    if isinstance(own := getattr(function, "name", None), str):
        return own
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def wrong_answer(argument: str, function: Any, problem: str) -> ValueError:
    """The error about what the function at ``argument`` did: one line that names both."""
    return ValueError(f"{argument}={name_of(function)} {problem}")


def described(value: Any) -> str:
    """A value in a few words: a tensor by shape and dtype (float32 is not named), a tuple by the kinds inside."""
    if isinstance(value, Tensor):
        dtype = "" if value.dtype == torch.float32 else f"{value.dtype} ".replace("torch.", "")
        return f"a tensor {dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(described(item) for item in value[:4])}{', …' if len(value) > 4 else ''})"
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
