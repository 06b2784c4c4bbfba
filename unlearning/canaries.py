"""``demem.py scan --canaries``: canary texts for a training set, and how exposed they are in a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.scan.canaries import canaries, exposures, summary_of
from eval.scan.measure import metered
from eval.scan.results import write_private_json, write_rows
from eval.scan.run import Subject
from ppo.io.rows import jsonl_rows
from unlearning.run import say

LONGEST = 128  # tokens of a canary, far more than any has


def run_canaries(subject: Subject, out: Path, *, count: int, seed: int, meta: Mapping[str, Any]) -> None:
    """Write canaries.jsonl, a text and its exposure a row, and canaries.json, the summary. Nothing is planted.

    ValueError where canaries.jsonl holds other texts: somebody may have trained on them.
    """
    path, planted = out / "canaries.jsonl", canaries(count, seed)
    if path.exists() and [row.get("text") for _, row in jsonl_rows(path)] != [canary.text for canary in planted]:
        raise ValueError(f"{path} holds other canaries: name another --out")
    with metered(subject.model, bos=subject.bos, length=LONGEST, top_k=0) as meter:
        rows = exposures(meter, subject.encode, planted, seed=seed)
    found = summary_of(rows)
    write_rows(path, rows)
    write_private_json(out / "canaries.json", {"meta": dict(meta), **found})
    say(
        f"canaries: {path} (private), {count} texts to put into a training set\n"
        f"exposure in this model: mean {found['mean_exposure']:.2f} bits (never planted: "
        f"{found['expected_by_chance']:.2f}), highest {found['highest_exposure']:.1f} of {found['space_bits']:.1f}; "
        f"{found['likelier_than_all_references']} of {count} are likelier than all {found['references']} references"
    )
