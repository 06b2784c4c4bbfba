"""What benchmarks share: time, memory, and a JSON result with its provenance."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eval.provenance import provenance


def peak_memory_bytes() -> int:
    """The largest resident memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Write a result with its provenance as JSON; without a path write nothing."""
    if path is not None:
        Path(path).write_text(json.dumps({**result, "machine": provenance()}, indent=2) + "\n", encoding="utf-8")


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class PeakMemory:
    """How far resident memory rises above its level at the start, in bytes, sampled every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self._start = resident_bytes()
        self.peak_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, resident_bytes() - self._start)


def resident_bytes() -> int:
    """Resident memory of this process, in bytes. Linux only; 0 elsewhere."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0
