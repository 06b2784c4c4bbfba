"""Starts a program of a test under torchrun, two processes on the CPU, and gives back what each of them answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def torchrun(count: int, *program: str, cwd: Path = ROOT, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run a program in ``count`` processes; a hang is a failure."""
    command = [*TORCHRUN, str(count), "--master-port", "0", *program]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=timeout
    )


def answers(count: int, folder: Path, case: str) -> list:
    """What ``tests/processes_cases.py CASE`` left in ``folder``, one answer a process."""
    folder.mkdir(exist_ok=True)
    program = ["-m", "tests.processes_cases", case, str(folder)]
    if count == 1:
        done = subprocess.run(
            [sys.executable, *program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
    else:
        done = torchrun(count, *program)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"answer-{count}-{rank}.pt", weights_only=True) for rank in range(count)]
