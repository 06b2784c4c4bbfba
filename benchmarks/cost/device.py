"""What a device can do, and how long a piece of work takes on it: the slower of arithmetic, memory and launches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Rate = Literal["float32", "bfloat16", "float32 attention", "bfloat16 attention"]


@dataclass(frozen=True)
class Work:
    """Operations of one kind on one device: arithmetic ``operations`` at ``rate``, ``moved`` bytes of its memory,
    ``launches`` of kernels, ``sent`` bytes over its link to the others. ``fresh``: bytes that a CPU's allocator gets
    from the system anew each time; CUDA's allocator keeps its memory.
    """

    part: str
    name: str
    operations: float = 0.0
    moved: float = 0.0
    sent: float = 0.0
    launches: float = 0.0
    fresh: float = 0.0
    rate: Rate = "float32"


@dataclass(frozen=True)
class Device:
    """``operations`` (per second, by precision) and ``bandwidth`` (bytes per second) are reached values, not peaks.

    ``link`` and ``network``: bytes per second and device in a collective operation, within a node of ``node_size``
    devices and beyond it. ``reserved``: bytes of ``memory`` that the process cannot use, such as the CUDA context.
    ``fresh_bandwidth``: bytes per second written to memory that is new to the process. ``packs_weights``: the fast
    decoder keeps a copy of all weights in the processor's own layout.
    """

    name: str
    memory: float
    operations: Mapping[Rate, float]
    bandwidth: float
    link: float
    network: float
    node_size: int = 8
    launch_seconds: float = 0.0
    reserved: float = 0.0
    fresh_bandwidth: float = math.inf
    packs_weights: bool = False
    source: str = ""

    def seconds(self, work: Iterable[Work], *, devices: int = 1) -> float:
        """Seconds of all pieces, one after the other. Nothing is sent while something is computed."""
        link = self.link if devices <= self.node_size else self.network
        return sum(self._computed(piece) + piece.sent / link for piece in work)

    def _computed(self, piece: Work) -> float:
        arithmetic = piece.operations / self.operations[piece.rate]
        work = max(arithmetic, piece.moved / self.bandwidth, piece.launches * self.launch_seconds)
        return work + piece.fresh / self.fresh_bandwidth


H100 = Device(
    name="H100-80GB",
    memory=80e9,
    operations={
        "float32": 0.8 * 67e12,
        "bfloat16": 0.6 * 989e12,
        "float32 attention": 0.4 * 67e12,
        "bfloat16 attention": 0.3 * 989e12,
    },
    bandwidth=0.8 * 3.35e12,
    link=0.8 * 450e9,
    network=0.7 * 400e9,
    launch_seconds=5e-6,
    reserved=2e9,
    source=(
        "NVIDIA H100 SXM data sheet: 80 GB, 3.35 TB/s, 67 TFLOP/s float32, 989 TFLOP/s dense bfloat16, NVLink 900 GB/s "
        "in both directions together; DGX H100 data sheet: eight 400 Gb/s adapters a node of eight. Assumed to be "
        "reached: 80 % of float32 and 60 % of bfloat16 in matrix products, half of that in attention, 80 % of memory, "
        "80 % of NVLink, 70 % of the adapters, which the eight GPUs of a node share; 5 µs for each kernel launched "
        "from Python"
    ),
)


def measured(rates: Mapping[str, Any], *, memory: float, start: float) -> Device:
    """The machine that ``benchmarks.rates`` measured. ``start``: bytes that the process held before it had a model."""
    is_cpu = "calls_per_second" not in rates
    return Device(
        name="the measured CPU" if is_cpu else "the measured accelerator",
        memory=memory,
        operations={
            "float32": rates["float32_layer_operations_per_second"],
            "bfloat16": rates["bfloat16_layer_operations_per_second"],
            "float32 attention": rates["float32_attention_operations_per_second"],
            "bfloat16 attention": rates["bfloat16_attention_operations_per_second"],
        },
        bandwidth=rates["read_bytes_per_second"],
        link=rates["read_bytes_per_second"],
        network=rates["read_bytes_per_second"],
        reserved=start,
        launch_seconds=0.0 if is_cpu else 1 / rates["calls_per_second"],
        fresh_bandwidth=rates["new_bytes_per_second"] if is_cpu else math.inf,
        packs_weights=is_cpu,
        source="benchmarks.rates",
    )
