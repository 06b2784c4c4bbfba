"""Two scans of the same corpus, before and after unlearning: what is gone, what is left, and what else was lost.

Every text that was found before is measured at the same tokens in the same passes as then. Beside them stands the rest
of the corpus: how likely its tokens are, and what the model still recites of the texts that nobody counted as memories.
Copies and near-copies of memories that the model did not recite are no part of that rest: forgetting takes them along.
This module knows measured passes, no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from .findings import likeliest, probabilities
from .judge import MEMORISED
from .near import Near
from .protocols import Reading, tokens_at
from .results import LIKELY_SAMPLES
from .spans import runs
from .sweep import Layer, Sweep

Row = dict[str, Any]
LEFT, PART, GONE = "left", "part", "gone"
PART_SHARE = 0.5  # of a suffix, in the longest run, that is no longer "gone"


def compare(
    readings: Iterable[Reading],
    before: Sweep,
    after: Sweep,
    findings: Sequence[Mapping[str, Any]],
    *,
    later: Sequence[Row],
) -> tuple[list[Row], Row]:
    """(a row for each finding of the first scan, the comparison as a whole).

    ``findings``: rows of the first scan's scan.jsonl. ``later``: those of the second, of which the ones that touch none
    of the first are new. A finding is *left* if the model still recites as many tokens in a row as a suffix has,
    *part* if half as many, or if few draws hold a window of it, else *gone*.
    """
    of_document: dict[int, list[Mapping[str, Any]]] = {}
    for row in findings:
        of_document.setdefault(row["place"], []).append(row)
    memories = Near(row["text"] for row in findings if row["status"] == MEMORISED)
    rows: list[Row] = []
    rest = [np.zeros(3), np.zeros(3)]  # NLL, first choices, tokens
    place = 0
    for number, (_, group) in enumerate(groupby(readings, key=lambda reading: id(reading.document))):
        together, mine = list(group), of_document.get(number, [])
        layers = [[list(s.layers(place + kind, r)) for kind, r in enumerate(together)] for s in (before, after)]
        for row in mine:
            if row["reading"] >= len(together) or row["layer"] >= after.layout.layers:
                raise ValueError(f"the finding {row['id']!r:.80} of the earlier scan is not of this corpus")
            one = layers[1][row["reading"]][row["layer"]]
            rows.append(_after(row, one, before.layout.suffix))
        if layers[0][0]:
            outside = _outside(together[0], mine, memories)
            for total, sides in zip(rest, layers, strict=True):
                total += _sums(sides[0][0], outside)
        place += len(together)
    return rows, _whole(rows, rest, _new(findings, later))


def _after(row: Mapping[str, Any], layer: Layer, suffix: int) -> Row:
    """The numbers of a finding at the same tokens, after."""
    part = slice(*row["tokens"])
    run = max((b - a for a, b in runs(layer.right[part])), default=0)
    values = [likeliest(getattr(layer, name)[part], suffix) for name in ("logprobs", "top_k")]
    chances = probabilities(*values)
    draws = [n for n in (chances["samples"], chances["samples_top_k"]) if n is not None]
    is_likely = bool(draws) and min(draws) <= LIKELY_SAMPLES
    state = LEFT if run >= suffix else PART if run >= PART_SHARE * suffix or is_likely else GONE
    return {
        "type": "after", "id": row["id"], "status": row["status"], "state": state, "longest_run": run,
        "right": float(layer.right[part].mean()), "logprob": float(np.nanmean(layer.logprobs[part].astype(np.float64))),
        **chances,
    }  # fmt: skip


def _outside(reading: Reading, findings: Sequence[Mapping[str, Any]], memories: Near) -> np.ndarray:
    """Which tokens of a reading touch no finding and no piece of a memory, bool [n]."""
    outside = ~memories.tokens(reading)
    for row in findings:
        outside[tokens_at(reading, row["start"], row["stop"])] = False
    return outside


def _sums(layer: Layer, where: np.ndarray) -> np.ndarray:
    scored = np.isfinite(layer.logprobs) & where
    return np.array(
        [-layer.logprobs[scored].astype(np.float64).sum(), layer.right[scored].sum(), scored.sum()], dtype=np.float64
    )


def _new(findings: Sequence[Mapping[str, Any]], later: Sequence[Row]) -> int:
    """How many memories of the second scan touch no finding of the first."""
    known: dict[int, list[tuple[int, int]]] = {}
    for row in findings:
        known.setdefault(row["place"], []).append((row["start"], row["stop"]))
    return sum(
        row["status"] == MEMORISED
        and not any(start < row["stop"] and stop > row["start"] for start, stop in known.get(row["place"], []))
        for row in later
    )


def _whole(rows: Sequence[Row], rest: Sequence[np.ndarray], new: int) -> Row:
    """The comparison as a whole. Without a token of the rest its perplexities are None."""
    memories = [row["state"] for row in rows if row["status"] == MEMORISED]
    others = [row["state"] for row in rows if row["status"] != MEMORISED]
    found: Row = {
        "memories": {state: memories.count(state) for state in (LEFT, PART, GONE)}, "new": new,
        "recited_others": {"before": len(others), "left": others.count(LEFT)}, "rest": None,
    }  # fmt: skip
    if rest[0][2]:
        one, two = (math.exp(nll / count) for nll, _, count in rest)
        found["rest"] = {
            "tokens": int(rest[0][2]), "perplexity": {"before": one, "after": two, "ratio": two / one},
            "first_choices": {"before": rest[0][1] / rest[0][2], "after": rest[1][1] / rest[1][2]},
        }  # fmt: skip
    return found


def sentences(whole: Mapping[str, Any]) -> list[str]:
    """The comparison in words: what became of the earlier findings, of other recited texts, and of the rest."""
    states, others, rest = whole["memories"], whole["recited_others"], whole["rest"]
    lines = [
        f"of {sum(states.values())} texts that were memorised: {states['gone']} are gone, {states['part']} are left in "
        f"part, {states['left']} are left; {whole['new']} are new"
    ]
    if others["before"]:
        lines.append(f"of {others['before']} recited texts that are no memories, {others['left']} are still recited")
    if rest is not None:
        was, now = rest["perplexity"]["before"], rest["perplexity"]["after"]
        first = rest["first_choices"]
        lines.append(
            f"the rest of the corpus ({rest['tokens']:,} tokens): perplexity {was:.2f} -> {now:.2f} "
            f"(x{rest['perplexity']['ratio']:.3f}), first choices {first['before']:.1%} -> {first['after']:.1%}"
        )
    return lines
