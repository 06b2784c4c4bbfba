"""What benchmarks share: the device, time, memory, and a JSON result with its provenance."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from eval.provenance import provenance
from ppo.lm.device import of_accelerator, resolve_device

CPU = torch.device("cpu")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option ``--device``; the parsed value is a ``torch.device`` that this machine has."""
    words = "auto (the accelerator, if there is one), cpu, cuda, cuda:1, …"
    parser.add_argument("--device", default="auto", type=_device, help=words)


def _device(name: str) -> torch.device:
    try:
        return resolve_device(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def settle() -> None:
    """Wait until the accelerator has done all that it was told. Without one, do nothing."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def peak_memory_bytes(device: torch.device = CPU) -> int:
    """The most memory that this process has had so far, in bytes: resident on the CPU, else that of torch's tensors."""
    if device.type != "cpu":
        return int(of_accelerator().max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def start_memory_bytes(device: torch.device = CPU) -> int:
    """The memory from which a peak is counted. On an accelerator the peak so far is forgotten, so it begins anew."""
    if device.type == "cpu":
        return peak_memory_bytes()
    gc.collect()
    of_accelerator().empty_cache()
    of_accelerator().reset_peak_memory_stats(device)
    return int(of_accelerator().memory_allocated(device))


def write_json(path: str | None, result: Mapping[str, Any], device: torch.device = CPU) -> None:
    """Write a result with its provenance as JSON; without a path write nothing."""
    if path is not None:
        text = json.dumps({**result, "machine": provenance(device)}, indent=2, default=str)
        Path(path).write_text(text + "\n", encoding="utf-8")


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, with all that it told the accelerator to do."""
    settle()
    started = time.perf_counter()
    function()
    settle()
    return time.perf_counter() - started


class PeakMemory:
    """How far memory rises above its level at the start, in bytes.

    On the CPU it is resident memory, sampled every 2 ms, on a device the memory of torch's tensors.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self._device = device
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        self.peak_bytes = 0
        if self._device.type == "cpu":
            self._start = resident_bytes()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        else:
            self._start = start_memory_bytes(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._is_over.set()
            self._thread.join()
        else:
            self.peak_bytes = peak_memory_bytes(self._device) - self._start

    def _watch(self) -> None:
        while not self._is_over.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, resident_bytes() - self._start)


def resident_bytes() -> int:
    """Resident memory of this process, in bytes. Linux only; 0 elsewhere."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0
