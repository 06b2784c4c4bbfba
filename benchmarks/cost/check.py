"""The model beside what ``benchmarks.update`` measured on a CPU.

The only numbers taken from the measurement are the rates of ``benchmarks.rates``, measured in the same process as the
variant, and the memory that the process held before it had a model; nothing is fitted to the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.models import SHAPES, llama_config
from models.load import load

from .architecture import Architecture, from_config
from .device import measured
from .estimate import Estimate, estimate
from .plan import Plan
from .work import PARTS

LIMIT = 0.25  # by how much prediction and measurement of a step's time and of its peak may differ
_CHANGES: dict[str, dict[str, Any]] = {
    "shared": {},
    "shared-bf16": {"precision": "autocast"},
    "critic": {"value_head": "critic"},
    "critic-bf16": {"value_head": "critic", "precision": "autocast"},
    "lora": {},
    "lora-bf16": {"precision": "autocast"},
    "top": {"train_top_layers": 2},
    "checkpointed": {"gradient_checkpointing": True},
    "pure-bf16": {"precision": "bfloat16", "moments": "bfloat16"},
}


_NEEDED = {
    *(f"{dtype}_{kind}_operations_per_second" for dtype in ("float32", "bfloat16") for kind in ("layer", "attention")),
    "read_bytes_per_second", "new_bytes_per_second", "start_memory_bytes",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One quantity of one variant: seconds of a part, or bytes ("peak")."""

    variant: str
    quantity: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured

    @property
    def is_judged(self) -> bool:
        return self.quantity in ("step", "peak")

    @property
    def is_close(self) -> bool:
        return abs(self.ratio - 1) <= LIMIT


def compare(result: Mapping[str, Any], rates: Mapping[str, float] | None = None) -> list[Comparison]:
    """Every variant of a result of ``benchmarks.update`` that is this library's own, part by part.

    ``rates``: those of :func:`benchmarks.rates.machine_rates`, and "start_memory_bytes", for a result that lacks its
    own. Raises ValueError where both are missing.
    """
    options = result["options"]
    arch = architecture(options["model"])
    found = []
    for variant, outcome in result["results"].items():
        if variant in _CHANGES:
            predicted = predict(arch, variant, options, outcome, rates)
            found += _compare(variant, predicted, outcome)
    return found


def architecture(model: str) -> Architecture:
    """Of a model as ``benchmarks.update --model`` names it."""
    return from_config(llama_config(model) if model in SHAPES else load(model).model.config, model)


def predict(
    arch: Architecture,
    variant: str,
    options: Mapping[str, Any],
    outcome: Mapping[str, Any],
    rates: Mapping[str, float] | None = None,
) -> Estimate:
    """What the variant should have cost on the machine whose rates the outcome holds."""
    own = {**outcome.get("rates", {}), **{name: outcome[name] for name in ("start_memory_bytes",) if name in outcome}}
    known = next((found for found in (own, rates or {}) if found.keys() >= _NEEDED), None)
    if known is None:
        missing = ", ".join(sorted(_NEEDED - own.keys()))
        raise ValueError(f"the result of {variant!r} lacks {missing}: measure it again, or rates now (--measure-rates)")
    device = measured(known, memory=float("inf"), start=known["start_memory_bytes"])
    return estimate(arch, plan_of(variant, options), device)


def plan_of(variant: str, options: Mapping[str, Any]) -> Plan:
    """What ``benchmarks.update`` does for a variant."""
    lora_rank = options["lora_rank"] if variant.startswith("lora") else 0
    names = ("prompts", "prompt_length", "response_length", "epochs", "microbatch")
    return Plan(**{name: options[name] for name in names}, lora_rank=lora_rank, **_CHANGES[variant])


def _compare(variant: str, predicted: Estimate, outcome: Mapping[str, Any]) -> list[Comparison]:
    seconds, medians = predicted.seconds_by_part(), outcome["median_seconds"]
    found = [Comparison(variant, part, seconds[part], medians[part]) for part in (*PARTS, "step")]
    return [*found, Comparison(variant, "peak", predicted.memory.peak, outcome["peak_memory_bytes"])]


def table(comparisons: list[Comparison]) -> str:
    """One line a variant, predicted / measured by quantity; a star where step or peak is further off than ``LIMIT``."""
    names = [*PARTS, "step", "peak"]
    lines = ["| variant | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for variant in dict.fromkeys(c.variant for c in comparisons):
        cells = [_cell(next(c for c in comparisons if (c.variant, c.quantity) == (variant, name))) for name in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(comparison: Comparison) -> str:
    scale, unit = (2**30, "GiB") if comparison.quantity == "peak" else (1, "s")
    mark = " *" if comparison.is_judged and not comparison.is_close else ""
    figures = f"{comparison.predicted / scale:.2f} / {comparison.measured / scale:.2f} {unit}"
    return f"{figures} = {comparison.ratio:.2f}{mark}"
