"""Start programs on the CPU as a user does, also in several processes through torchrun. None outlives its test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen]:
    """A program that runs beside the test. At the end it gets SIGTERM (torchrun passes that on), then SIGKILL."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()


def wait_for(condition: Callable[[], object], process: subprocess.Popen, *, seconds: float = 300) -> None:
    """Return when the condition holds. AssertionError if the process ends before that, or after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended before: {process.communicate()[1][-4000:]}"
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.02)


def torchrun(*program: str, count: int = 2, timeout: float = 900) -> subprocess.CompletedProcess:
    """Run ``program`` (a file, or -m and a module) in ``count`` processes. A hang is a failure."""
    command = [*LAUNCHER, str(count), *program]
    with running(command) as process:
        output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
