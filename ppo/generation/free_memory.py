"""How much memory can still be allocated: what the device says, less what a container does not allow.

On Linux ``MemAvailable`` is the whole machine's. A control group (version 1 or 2: containers, batch systems) may allow
less, at its own level or at one above it, and the kernel then kills without a word. This module knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

# controllers' name in /proc/self/cgroup: where its groups are; files with the limit and the use; of the use, pages of
# files that the kernel gives up before it kills
_GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated on a device; None where that cannot be told.

    On CUDA that is what the device has free and what torch keeps for later (never run on one). ``root`` is where
    ``proc`` and ``sys`` are.
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
            # Inside a container the path may be the host's: then the container's own group is the base.
            for group in [folder, *folder.parents]:
                if not group.is_relative_to(base):
                    break
                limit, use = _number(group / limit_file), _number(group / use_file)
                if limit is not None and use is not None:
                    yield max(0, limit - use + (_number(group / "memory.stat", pages) or 0))


def _number(path: Path, name: str | None = None) -> int | None:
    """The first number in a file of the kernel's, or the one behind a name; None where there is none ("max")."""
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        words = line.split()
        if name is not None and words[:1] != [name]:
            continue
        value = words[0 if name is None else 1]
        return int(value) if value.isdigit() else None
    return None
