"""What a step costs on a device (work, seconds and memory), and which settings make it fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .architecture import Architecture
from .device import Device, Work
from .memory import Memory, host_bytes, step_memory
from .plan import Plan
from .work import PARTS, step_work


@dataclass(frozen=True)
class Estimate:
    """``work`` and ``memory`` are those of one device."""

    arch: Architecture
    plan: Plan
    device: Device
    work: list[Work]
    memory: Memory

    def seconds(self, part: str | None = None, name: str | None = None) -> float:
        """Seconds of a part of the step, or of one kind of work in it; by default of everything."""
        return self.device.seconds(self._chosen(part, name), devices=self.plan.devices)

    def seconds_by_part(self) -> dict[str, float]:
        return {part: self.seconds(part) for part in PARTS} | {"step": self.seconds()}

    def sending_seconds(self) -> float:
        """The part of ``seconds()`` that is spent sending."""
        sent = [Work(piece.part, piece.name, sent=piece.sent) for piece in self.work]
        return self.device.seconds(sent, devices=self.plan.devices)

    def _chosen(self, part: str | None, name: str | None) -> list[Work]:
        return [w for w in self.work if (part is None or w.part == part) and (name is None or w.name == name)]

    @property
    def operations(self) -> float:
        return sum(piece.operations for piece in self.work)

    @property
    def moved(self) -> float:
        return sum(piece.moved for piece in self.work)

    @property
    def sent(self) -> float:
        return sum(piece.sent for piece in self.work)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.device.memory

    @property
    def host_bytes(self) -> float:
        """Memory of one node's host before the weights are split."""
        return host_bytes(self.arch, self.plan, self.device)


def estimate(arch: Architecture, plan: Plan, device: Device) -> Estimate:
    """The cost of one step of ``plan``."""
    work = step_work(arch, plan, packs_weights=device.packs_weights)
    return Estimate(arch, plan, device, work, step_memory(arch, plan, device))


Remedy = tuple[str, Callable[[Plan], Plan]]
REMEDIES: tuple[Remedy, ...] = (
    ("gradient_checkpointing", lambda plan: replace(plan, gradient_checkpointing=True)),
    ("reference_dtype='bfloat16'", lambda plan: replace(plan, reference="copy-bfloat16")),
    ("microbatch=1", lambda plan: replace(plan, microbatch=1)),
    ("sharding='fsdp'", lambda plan: replace(plan, sharding="fsdp") if _can_split(plan) else plan),
    ("gather_for_rollouts=False", lambda plan: replace(plan, gather_for_rollouts=not plan.is_sharded)),
    ("autocast='off'", lambda plan: replace(plan, precision="float32") if plan.precision == "autocast" else plan),
    ("value_head='linear'", lambda plan: replace(plan, value_head="linear")),
    ("LoRA of rank 16", lambda plan: replace(plan, lora_rank=16) if _can_adapt(plan) else plan),
    (
        "bfloat16 weights and moments, whole on every device",
        lambda plan: replace(plan, sharding="none", gather_for_rollouts=True, precision="bfloat16", moments="bfloat16"),
    ),
)  # the mildest first; each is added to those before it


def remedies(arch: Architecture, plan: Plan, device: Device) -> tuple[list[str], Estimate]:
    """The changes that make the step fit, and the estimate with them; all changes if it never fits.

    They are added one after another until the step fits. Then those that turn out not to be needed are left out again,
    the harshest first. If the step never fits, the estimate is the smallest.
    """
    chosen: list[Remedy] = []
    found = estimate(arch, plan, device)
    for remedy in REMEDIES:
        if found.fits:
            break
        if remedy[1](_changed(plan, chosen)) != _changed(plan, chosen):
            chosen.append(remedy)
            found = estimate(arch, _changed(plan, chosen), device)
    for remedy in reversed(chosen[:-1]):
        fewer = [other for other in chosen if other is not remedy]
        without = estimate(arch, _changed(plan, fewer), device)
        if without.fits:
            chosen, found = fewer, without
    return [name for name, _ in chosen], found


def _changed(plan: Plan, chosen: list[Remedy]) -> Plan:
    for _, change in chosen:
        plan = change(plan)
    return plan


def _can_adapt(plan: Plan) -> bool:
    return not (plan.sharding == "fsdp" and plan.value_head == "critic")


def _can_split(plan: Plan) -> bool:
    return plan.devices > 1 and plan.precision != "bfloat16" and plan.moments == "float32"
