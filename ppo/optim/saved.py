"""Whether tensors can be what an AdamW left: its moments and step counts, held against the parameters.

A checkpoint comes from outside. Moments of another type, a negative mean of squares or a step count that is no count
would train on silently, or end in an error of torch's that names no file. This module knows no files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..distributed.sharding import whole

_STATE = {"step", "exp_avg", "exp_avg_sq"}  # what Adam keeps of a parameter
_LAST_COUNT = 2**24  # Adam counts in float32, which stops here


def check_moments(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], moment_dtype: torch.dtype | None
) -> None:
    """Raise ValueError for tensors ``<parameter>/<moment>`` that do not fit the parameters of these names.

    ``moment_dtype``: of both moments; None: each parameter's own.
    """
    keys: dict[str, set[str]] = {}
    for full_name in tensors:
        name, _, key = full_name.rpartition("/")
        keys.setdefault(name, set()).add(key)
    for name, found in keys.items():
        if name not in parameters:
            raise ValueError(f"the checkpoint's optimiser knows {name!r:.80}, which this model does not train")
        if found != _STATE:
            raise ValueError(f"the checkpoint's optimiser holds {sorted(found)} of {name}, not {sorted(_STATE)}")
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        shape, dtype = parameters[name].shape, moment_dtype or parameters[name].dtype
        if key == "step":
            shape, dtype = torch.Size(), torch.float32
        if value.shape != shape:
            raise ValueError(f"the checkpoint's {full_name} is {tuple(value.shape)}, not {tuple(shape)}")
        if value.dtype != dtype:
            raise ValueError(f"the checkpoint's {full_name} is {value.dtype}, not {dtype}")
        if key == "exp_avg_sq" and _is_negative_somewhere(value):
            raise ValueError(f"the checkpoint's {full_name} is negative somewhere: it is a mean of squares")


def check_counts(
    tensors: Mapping[str, Tensor], policy: Collection[str], num_updates: int, num_waiting: int | None
) -> None:
    """Raise ValueError for step counts that ``num_updates`` updates cannot have left.

    ``policy``: the names of the policy's parameters, the rest are the critic's; ``num_waiting``: in how many updates
    the policy waited for its critic, None where that is not known.
    """
    counts = {name: float(whole(x)) for name, x in tensors.items() if name.endswith("/step")}
    most = min(num_updates, _LAST_COUNT)
    for name, count in counts.items():
        if not (0 <= count <= most and count == int(count)):
            raise ValueError(f"the checkpoint's {name} is {count:g}, not a whole number up to num_updates={most}")
    moved = max((counts.get(f"{name}/step", 0.0) for name in policy), default=0.0)
    if num_waiting is not None and policy and moved != min(num_updates - num_waiting, _LAST_COUNT):
        raise ValueError(
            f"the checkpoint's num_updates is {num_updates} and its critic_updates is {num_waiting}, but its optimiser "
            f"moved the policy {moved:g} times"
        )


def _is_negative_somewhere(values: Tensor) -> bool:
    local = values.to_local() if isinstance(values, DTensor) else values
    return local.numel() > 0 and float(local.min()) < 0
