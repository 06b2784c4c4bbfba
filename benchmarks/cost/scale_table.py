"""The table of scale in docs/results.md: what one PPO step takes on 1, 8 and 64 GPUs, by the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report.comparison.text import markdown

from .architecture import KNOWN
from .device import H100
from .estimate import Estimate, estimate
from .page import BY_BLOCKS, plan_for

SCALES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("GPT-Neo 1.3B, DDP", "gpt-neo-1.3b", {}),
    ("… FSDP2", "gpt-neo-1.3b", {"sharding": "fsdp"}),
    ("GPT-Neo 2.7B, DDP", "gpt-neo-2.7b", {}),
    ("… FSDP2", "gpt-neo-2.7b", {"sharding": "fsdp"}),
    ("Llama 70B, LoRA, FSDP2 block by block, checkpointing", "llama-3.1-70b", {**BY_BLOCKS, "lora_rank": 16}),
    ("… in full, float32", "llama-3.1-70b", {**BY_BLOCKS, "precision": "float32"}),
)
"""Rows of the table of scale: label, model, and what is changed in the step of docs/scale.md."""


def scale_table() -> str:
    """What one step takes on 1, 8 and 64 GPUs, by the cost model; on one GPU nothing is split."""
    rows = [["", "on 1 GPU", "on 8", "on 64", "TFLOP a GPU"]]
    for label, name, changes in SCALES:
        alone = {key: value for key, value in changes.items() if key not in ("sharding", "gather_for_rollouts")}
        plans = (plan_for(1, alone), plan_for(8, changes), plan_for(64, changes))
        found = [estimate(KNOWN[name], plan, H100) for plan in plans]
        cells = [_size_and_time(one) for one in found]
        if changes and not alone:  # what only several GPUs tell from the row above
            cells[0] = ""
        rows.append([label, *cells, f"{found[-1].operations / 1e12:,.0f}"])
    return markdown(rows)


def _size_and_time(one: Estimate) -> str:
    size = f"{one.memory.peak / 1e9:,.1f} GB"
    return f"{size}, {one.seconds():,.1f} s" if one.fits else f"does not fit: {size}"
