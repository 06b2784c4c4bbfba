"""The precision of statistics: float32, or float64 if the model is in float64.

A model in bfloat16 or under autocast has its log-probs, values, rewards and losses in float32. A model in float64 has
all of them in float64, so that a test can compare a whole step with an independent one to the last digits.
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
    """The context for a forward pass: torch's autocast for "bfloat16", an empty one for "off"."""
    return nullcontext() if kind == "off" else torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def as_float64(x: Tensor) -> Tensor:
    """The same numbers in float64, on the CPU where their device has no float64 (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def as_statistics(x: Tensor) -> Tensor:
    """The same numbers in :func:`statistics_dtype`."""
    return x.to(statistics_dtype(x.dtype))
