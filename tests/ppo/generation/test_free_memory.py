"""Free memory as the kernel's files state it, in made-up trees of such files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppo.generation.free_memory import free_memory

CPU = torch.device("cpu")
MIB = 2**20


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder: str, limit: str, use: int, inactive: int) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{use}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {inactive}\nactive_file 7\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4 * MIB),
        ({"proc/self/cgroup": "0::/\n"}, 4 * MIB),  # the top group of a machine has no limit
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", "max", MIB, 0)}, 4 * MIB),
        # cached pages of files count as free: the kernel drops them before it kills a process
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", str(3 * MIB), 2 * MIB, MIB // 2)}, 3 * MIB // 2),
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", str(MIB), 2 * MIB, 0)}, 0),
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", str(90 * MIB), 2 * MIB, 0)}, 4 * MIB),
        (
            {  # a limit above the process's own group
                "proc/self/cgroup": "1:name=systemd:/x\n0::/jobs/one\n",
                **group("sys/fs/cgroup/jobs/one", "max", MIB, 0),
                **group("sys/fs/cgroup/jobs", str(3 * MIB), MIB, 0),
            },
            2 * MIB,
        ),
        (
            {  # version 1, and a path that only the host knows
                "proc/self/cgroup": "5:memory,hugetlb:/docker/abc\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * MIB),
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(MIB),
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 1024\n",
            },
            MIB + 1024,
        ),
    ],
)
def test_free_memory_is_the_least_of_the_machine_s_and_every_group_s(tmp_path, files, expected):
    assert free_memory(CPU, tree(tmp_path, files)) == expected


def test_without_the_kernel_s_files_free_memory_is_unknown(tmp_path):
    assert free_memory(CPU, tmp_path) is None
    assert free_memory(torch.device("meta"), tree(tmp_path, {})) is None


def test_on_a_gpu_memory_that_torch_caches_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_memory(torch.device("cuda")) == 140


def test_free_memory_of_this_machine_is_found():
    if not Path("/proc/meminfo").exists():
        pytest.skip("no Linux")
    free = free_memory(CPU)
    assert free is not None
    assert 2**24 < free < 2**50
