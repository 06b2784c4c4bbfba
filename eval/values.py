"""The numbers of single passages that a point keeps, so that two methods can be held against each other pair by pair.

    point["values"] = {"forget": {"of": DIGEST, "exact": [1, 0, …], …}, "never": …, "keep": …, "texts": …}

A list has a number for each passage of its group, in the order of the data, None where the passage has none. ``of`` is
a digest of the passages' ids: ids may be private, and only whether two points are about the same passages matters.
"texts" are the held-out texts, with the NLL and the number of scored tokens of each. This module computes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppo.io.plain import finite

Record = Mapping[str, Any]
Values = dict[str, dict[str, Any]]

OF, TEXTS = "of", "texts"
GAPS = ("verbatim_run", "ma_suffix", "extraction_strength", "longest_run", "nll_suffix")
"""Quantities whose target is the twin's value or that on never-trained passages."""
WRITTEN = ("empty", "loop", "garbled", "distinct_2", "distinct_2_truth", "length", "length_truth", "non_words",
           "output_nll", "output_order")  # fmt: skip
"""What the score of the writing is made of."""
KEPT: Mapping[str, tuple[str, ...]] = {
    "forget": ("exact", "exact_sampled", "secret_emitted", *GAPS, *WRITTEN),
    "never": GAPS,
    "keep": ("exact", "exact_sampled"),
}
MOST_VALUES = 10_000  # passages of a group, or texts
DIGITS = 6


def passage_values(records: Sequence[Record], texts: Sequence[tuple[float, int]] = ()) -> Values:
    """The values of an evaluation's records. ``texts``: the NLL and the number of tokens of each held-out text.

    Texts with an NLL that is not finite are left out, all of them.
    """
    found: Values = {}
    for group, names in KEPT.items():
        rows = [r for r in records if r["group"] == group]
        columns = {n: [_short(r.get(n)) for r in rows] for n in names if any(r.get(n) is not None for r in rows)}
        if columns:
            found[group] = {OF: _digest([r["id"] for r in rows]), **columns}
    if texts and all(math.isfinite(nll) for nll, _ in texts):
        found[TEXTS] = {
            OF: _digest([count for _, count in texts]),
            "nll": [_short(nll) for nll, _ in texts],
            "tokens": [count for _, count in texts],
        }
    return found


def _short(value: float | None) -> float | int | None:
    """A number with ``DIGITS`` digits; whole ones without a point. What is not finite is none."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _digest(items: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]


def check_values(values: Any, where: str) -> None:
    """Hold the values of a point against their shape. ValueError begins with ``where`` and names the field."""
    _require(isinstance(values, dict), where, values, "an object")
    known = {**KEPT, TEXTS: ("nll", "tokens")}
    for group, columns in values.items():
        of = f"{where}, {group!r:.60}"
        _require(group in known, of, columns, "known to this version")
        _require(isinstance(columns, dict), of, columns, "an object")
        digest = columns.get(OF)
        _require(isinstance(digest, str) and len(digest) <= 64, f"{of}, {OF}", digest, "a digest")
        sizes = set()
        for name, column in columns.items():
            if name == OF:
                continue
            _require(name in known[group], f"{of}, {name!r:.60}", column, "known to this version")
            is_short = isinstance(column, list) and 0 < len(column) <= MOST_VALUES
            _require(is_short, f"{of}, {name}", column, f"a list of 1 to {MOST_VALUES} numbers")
            _check_column(column, f"{of}, {name}", may_lack=group != TEXTS)
            sizes.add(len(column))
        _require(len(sizes) == 1, of, sorted(sizes), "of lists of one length")
        if group == TEXTS:
            _require({"nll", "tokens"} <= set(columns), of, sorted(columns), "whole: it needs nll and tokens")
            _require(all(count > 0 for count in columns["tokens"]), f"{of}, tokens", columns["tokens"], "above 0")


def _check_column(column: Sequence[Any], where: str, *, may_lack: bool) -> None:
    for value in column:
        number = finite(value)
        is_right = (value is None and may_lack) or (number is not None and abs(number) <= 1e12)
        _require(is_right, where, value, "a list of numbers")


def _require(is_right: bool, where: str, value: Any, wanted: str) -> None:
    if not is_right:
        raise ValueError(f"{where} is {value!r:.60}, not {wanted}")
