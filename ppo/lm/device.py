"""Where a model is put, and in which precision: what somebody asked for, checked against what this machine has.

An *accelerator* is what ``torch.accelerator`` names: CUDA, MPS, XPU, … Under torchrun each process has one of its own,
the one with the index LOCAL_RANK. Random numbers are drawn on the CPU wherever the model is. So the device does not
change which numbers are drawn. This module knows no algorithm, and no process but its own.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

COLLECTIVES = {"cuda": "nccl", "xpu": "xccl"}  # what several processes speak to each other, by kind of accelerator
FLOATS = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
"""What weights may be, by name."""


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that is meant: "auto", "cpu", "cuda", "cuda:1", "mps", … or a ``torch.device``.

    "auto" is this process's own accelerator, or the CPU where there is none. A kind without an index is this process's
    own, too. Raises ValueError of one line for what this machine lacks, and, under torchrun, for what another process
    has.
    """
    if not isinstance(device, str | torch.device):
        raise ValueError(f"device={device!r} must be 'auto', a name such as 'cpu' or 'cuda:1', or a torch.device")
    kind = accelerator()
    if device == "auto":
        return torch.device("cpu") if kind is None else torch.device(kind, _own_index(kind))
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = torch.device("meta")  # no name of a device at all
    if asked.type == "cpu" and not asked.index:
        return torch.device("cpu")
    if kind is None or asked.type != kind or (asked.index or 0) >= torch.accelerator.device_count():
        raise ValueError(
            f"device={device!s:.80} is not there: this machine has {', '.join(_names())}; take one of them, or 'auto'"
        )
    if asked.index is None:
        return torch.device(kind, _own_index(kind))
    rank, count = local_processes()
    if 1 < count <= torch.accelerator.device_count() and asked.index != rank:
        raise ValueError(f"device={device} belongs to another process, this one has {kind}:{rank}: take {kind!r}")
    return asked


def resolve_for(model: object, device: str | torch.device | None) -> torch.device | None:
    """Where a model goes that a caller gave. None: a loaded one stays where it is, and a name goes to "auto"."""
    if device is None and isinstance(model, nn.Module):
        return None
    return resolve_device("auto" if device is None else device)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of weights that is meant, by name or as torch's. Raises ValueError for any other."""
    found = FLOATS.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in FLOATS.values():
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(FLOATS)}, by name or as torch's")
    assert isinstance(found, torch.dtype)
    return found


def accelerator() -> str | None:
    """The kind of accelerator that can be used now, such as "cuda"; None where there is none."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if here is None else here.type


def local_processes() -> tuple[int, int]:
    """(this one's number, how many there are) of the processes that torchrun started on this machine."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))), count


def move(model: nn.Module, device: torch.device) -> None:
    """Move a module, in place, where all of it is not there already. Raises ValueError for one that cannot be moved."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.device == device for tensor in tensors):
        return
    if device.type == "mps" and any(tensor.dtype == torch.float64 for tensor in tensors):
        raise ValueError(f"device={device} has no float64: load the model in float32, or take device='cpu'")
    shared = _shared_places(model)
    try:
        model.to(device)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"this {type(model).__name__} cannot be moved to {device}: {reason}; load it there") from error
    for first, *others in shared:  # for some kinds of device torch makes new parameters, one for each place
        parameter = model.get_parameter(first)
        for name in others:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, parameter)


def _shared_places(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that stands in several places, such as a tied embedding."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [places for places in names.values() if len(places) > 1]


def device_of(model: nn.Module) -> torch.device:
    """Where a module is: the device of its first weight."""
    return next(model.parameters()).device


def of_accelerator() -> Any:
    """torch's module for the accelerator, such as ``torch.cuda``; None where there is none."""
    kind = accelerator()
    return None if kind is None else torch.get_device_module(kind)


def _own_index(kind: str) -> int:
    """The index of this process's own device. Raises ValueError where not every process on this machine has one."""
    rank, count = local_processes()
    there = torch.accelerator.device_count()
    if count > there:
        raise ValueError(
            f"{count} processes run on this machine, which has {there} of {kind}: start {there} at most, or pass "
            "device='cpu'"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.accelerator.current_device_index()
    if kind not in COLLECTIVES:
        raise ValueError(f"several processes cannot share their work on {kind}: start one, or pass device='cpu'")
    return rank


def _names() -> list[str]:
    """All devices of this machine, by name."""
    kind = accelerator()
    return ["cpu"] + ([] if kind is None else [f"{kind}:{i}" for i in range(torch.accelerator.device_count())])
