"""What numbers are computed in: float32, and float64 where the model's own numbers are float64.

A model in bfloat16 or under autocast gets its log-probs, values, rewards and losses in float32 all the same; a model in
float64 gets all of them in float64, so that a whole step can be held against an independent one to the last digits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast(kind: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """The context that a forward pass is made in: "bfloat16" for torch's autocast, "off" for nothing."""
    return nullcontext() if kind == "off" else torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def as_statistics(x: Tensor) -> Tensor:
    """The same numbers in :func:`statistics_dtype`."""
    return x.to(statistics_dtype(x.dtype))
