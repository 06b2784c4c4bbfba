"""What makes the host wait for a device: the operators whose result, or whose size, the host has to know.

On CUDA these are: reading one number (``item``, ``bool``, ``int``, ``float``); a copy to the CPU (``tolist``, ``cpu``);
and results whose shape depends on values (``nonzero``, a mask as an index, ``masked_select``, ``unique``,
``repeat_interleave`` without ``output_size``). An assignment of one number through a mask does not wait. A copy from
the CPU out of pageable memory waits as well, but for no earlier work of the device; it is counted apart.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_WAITING = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
}  # fmt: skip
_PUTS = {aten._index_put_impl_.default, aten.index_put_.default}


@dataclass
class Counts:
    """``operations`` of the device; ``waits`` for it and ``uploads`` to it, by operator and line of the library."""

    operations: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)

    @property
    def num_waits(self) -> int:
        return self.waits.total()

    @property
    def num_uploads(self) -> int:
        return self.uploads.total()


def count(counts: Counts, operator: Any, args: Any) -> None:
    """Add one call of an operator of the device, given its arguments."""
    counts.operations += 1
    waits, uploads = _costs(operator, args)
    if waits:
        counts.waits[f"{operator} {_place()}"] += waits
    if uploads:
        counts.uploads[f"{operator} {_place()}"] += uploads


def _costs(operator: Any, args: Any) -> tuple[int, int]:
    """How often a call makes the host wait, and how many tensors it copies to the device."""
    if operator in _WAITING:
        return 1, 0
    if operator is aten._copy_from.default:
        is_from, is_to = (x.device.type != "cpu" for x in args[:2])
        return int(is_from and not is_to), int(is_to and not is_from)
    if operator is aten.repeat_interleave.Tensor:
        return 1, 0
    if operator is aten.index.Tensor or operator in _PUTS:
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8) and x.device.type != "cpu"]
        is_filled = operator in _PUTS and _is_masked_fill(indices, masks, args)
        return 0 if is_filled else len(masks), sum(x.device.type == "cpu" for x in indices)
    return 0, 0


def _is_masked_fill(indices: list[Tensor], masks: list[Tensor], args: Any) -> bool:
    """Whether an assignment through a mask is one number for all, which torch fills in without reading the mask."""
    is_added = len(args) > 3 and args[3]
    return len(indices) == len(masks) == 1 and args[2].numel() == 1 and not is_added


def _place() -> str:
    """The line of the library that called, as ``file:line``; "" from the thread of a backward pass."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/ppo/" in name and "/tests/" not in name:
            return f"{name.rpartition('/ppo/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
