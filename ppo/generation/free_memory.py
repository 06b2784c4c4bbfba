"""How much memory can still be allocated: what the device has free, or less where a container allows less.

On Linux ``MemAvailable`` is that of the whole machine. A control group (version 1 or 2: containers, batch systems) may
allow less, at its own level or at a level above it. The kernel kills a process that takes more, without a message.
This module knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

# A controller's name in /proc/self/cgroup: the folder of its groups; the files with the limit and with the use; the
# entry of memory.stat with the part of the use that the kernel gives up before it kills (pages of files).
_GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated on a device; None if that is unknown.

    On CUDA they are what the device has free and what torch keeps for later (never run on one). ``root`` is the folder
    of ``proc`` and ``sys``.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    available = _number(root / "proc/meminfo", "MemAvailable:") if device.type == "cpu" else None
    return None if available is None else min([1024 * available, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes that each control group around this process still allows."""
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else []:
        _, controllers, path = line.split(":", 2)
        for name in {"", "memory"}.intersection(controllers.split(",")):
            top, limit_file, use_file, pages = _GROUPS[name]
            base = root / top
            folder = base / path.strip("/")
            # Inside a container the path may be that of the host. Then the container's own group is the base.
            for group in [folder, *folder.parents]:
                if not group.is_relative_to(base):
                    break
                limit, use = _number(group / limit_file), _number(group / use_file)
                if limit is not None and use is not None:
                    yield max(0, limit - use + (_number(group / "memory.stat", pages) or 0))


def _number(path: Path, name: str | None = None) -> int | None:
    """The first number in one of the kernel's files, or the number after a name; None if there is none ("max")."""
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        words = line.split()
        if name is not None and words[:1] != [name]:
            continue
        value = words[0 if name is None else 1]
        return int(value) if value.isdigit() else None
    return None
