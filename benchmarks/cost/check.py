"""The model beside what ``benchmarks.update`` measured on a CPU.

The model takes only these numbers from the measurement: the rates of ``benchmarks.rates``, measured in the process of
the variant, and the memory that this process held before it had a model. Nothing is fitted to the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import SHAPES, llama_config
from models.load import load

from .architecture import Architecture, from_config
from .device import measured
from .estimate import Estimate, estimate
from .plan import Plan
from .work import PARTS

LIMIT = 0.25  # the largest relative error of a step's time and of its peak
LEAST_OF_ROLLOUT = 0.5  # of a measured rollout's time; rollout.py says why the prediction is low
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
        return self.quantity in ("rollout", "step", "peak")

    @property
    def is_close(self) -> bool:
        least = LEAST_OF_ROLLOUT if self.quantity == "rollout" else 1 - LIMIT
        return least <= self.ratio <= 1 + LIMIT


@dataclass(frozen=True)
class Check:
    """A result of ``benchmarks.update``: its file, its content, and the model beside it."""

    file: str
    result: Mapping[str, Any]
    comparisons: list[Comparison]

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.file).name


def read_checks(files: Iterable[str], rates: Mapping[str, float] | None = None) -> list[Check]:
    """A check for every file. ``rates`` and errors: see :func:`compare`."""
    results = {file: read_result(file) for file in files}
    return [Check(file, result, compare(result, rates)) for file, result in results.items()]


def read_result(file: str) -> dict[str, Any]:
    """A result that ``benchmarks.update --json`` wrote."""
    result: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return result


def has_rates(result: Mapping[str, Any]) -> bool:
    """Whether every variant that the model knows holds the rates of its machine."""
    own = [outcome for variant, outcome in result["results"].items() if variant in _CHANGES]
    return all(_own_rates(outcome).keys() >= _NEEDED for outcome in own)


def compare(result: Mapping[str, Any], rates: Mapping[str, float] | None = None) -> list[Comparison]:
    """The model beside every variant of a result that is this library's own (not TRL's), part by part.

    ``rates``: those of :func:`benchmarks.rates.machine_rates`, and "start_memory_bytes", for a result without its own.
    Raises ValueError where both are missing.
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
    """The shape of a model by its name in ``benchmarks.update --model``."""
    return from_config(llama_config(model) if model in SHAPES else load(model).model.config, model)


def predict(
    arch: Architecture,
    variant: str,
    options: Mapping[str, Any],
    outcome: Mapping[str, Any],
    rates: Mapping[str, float] | None = None,
) -> Estimate:
    """The predicted cost of the variant on the machine whose rates the outcome holds."""
    own = _own_rates(outcome)
    known = next((found for found in (own, rates or {}) if found.keys() >= _NEEDED), None)
    if known is None:
        missing = ", ".join(sorted(_NEEDED - own.keys()))
        raise ValueError(f"the result of {variant!r} lacks {missing}: measure it again, or rates now (--measure-rates)")
    device = measured(known, memory=float("inf"), start=known["start_memory_bytes"])
    return estimate(arch, plan_of(variant, options), device)


def _own_rates(outcome: Mapping[str, Any]) -> dict[str, float]:
    return {**outcome.get("rates", {}), **{name: outcome[name] for name in ("start_memory_bytes",) if name in outcome}}


def plan_of(variant: str, options: Mapping[str, Any]) -> Plan:
    """The step that ``benchmarks.update`` takes for a variant."""
    lora_rank = options["lora_rank"] if variant.startswith("lora") else 0
    names = ("prompts", "prompt_length", "response_length", "epochs", "microbatch")
    return Plan(**{name: options[name] for name in names}, lora_rank=lora_rank, **_CHANGES[variant])


def _compare(variant: str, predicted: Estimate, outcome: Mapping[str, Any]) -> list[Comparison]:
    seconds, medians = predicted.seconds_by_part(), dict(outcome["median_seconds"])
    medians["reference"] += medians.get("old_policy", 0.0)  # one part in the model, two in newer measurements
    found = [Comparison(variant, part, seconds[part], medians[part]) for part in (*PARTS, "step")]
    return [*found, Comparison(variant, "peak", predicted.memory.peak, outcome["peak_memory_bytes"])]


def table(comparisons: list[Comparison]) -> str:
    """A line a variant: predicted / measured of every quantity, with a star where the error exceeds its limit."""
    names = [*PARTS, "step", "peak"]
    lines = ["| variant | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for variant in dict.fromkeys(c.variant for c in comparisons):
        cells = [cell(next(c for c in comparisons if (c.variant, c.quantity) == (variant, name))) for name in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(comparison: Comparison) -> str:
    """Predicted / measured, their ratio, and a star where the error exceeds its limit."""
    scale, unit = (2**30, "GiB") if comparison.quantity == "peak" else (1, "s")
    mark = " *" if comparison.is_judged and not comparison.is_close else ""
    figures = f"{comparison.predicted / scale:.2f} / {comparison.measured / scale:.2f} {unit}"
    return f"{figures} = {comparison.ratio:.2f}{mark}"
