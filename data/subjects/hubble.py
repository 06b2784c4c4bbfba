"""Hubble (Wei et al. 2025): texts that were inserted into a pretraining corpus a known number of times, or never.

Its data sets (``allegrolab/passages_wikipedia``, ``biographies_yago`` and so on) have the columns ``text``,
``duplicates`` (0, 1, 4, 16, 64 or 256) and ``meta`` (JSON). What was inserted is to be forgotten, the rest was never
seen by the perturbed model. A biography is cut before its identifier, 32 signs that nobody can guess: its secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.subjects.source import Source
from data.subjects.tables import missing, rows, tables, text_of

NAME = "Hubble"


def read(folder: Path, split: str | None) -> Iterator[Source]:
    """The records of one data set or of a folder of them. ``split``: the fewest times that a text was inserted."""
    least = 1 if split is None else _number(split)
    num_rows = 0
    for table in tables(folder):
        if table.name not in ("train", "test", "validation"):
            continue
        kind = next((part for part in reversed((folder.resolve().name, *table.folders)) if part != "data"), NAME)
        for place, row in rows(table):
            num_rows += 1
            text, repeats = text_of(row, "text", place, NAME), row.get("duplicates")
            if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 0:
                raise ValueError(
                    f"{place}: duplicates is {repeats!r:.60}; a row of {NAME} needs how often it was inserted"
                )
            if 0 < repeats < least:
                continue
            at, secret = _identifier(text, row.get("meta"))
            yield Source(
                place,
                kind,
                "forget" if repeats else "never",
                text=text[at:],
                prompt=text[:at],
                repeats=repeats,
                secrets=(secret,) if secret else (),
            )
    if not num_rows:
        raise missing(folder, NAME, ["train", "test"])


def _number(split: str) -> int:
    if not split.isascii() or not split.isdigit() or int(split) < 1:
        raise ValueError(
            f"--data-split {split!r:.60} must be how often a text was inserted at least: 1, 4, 16, 64 or 256"
        )
    return int(split)


def _identifier(text: str, meta: Any) -> tuple[int, str]:
    """Where the identifier of a biography stands in its text, and the identifier; (0, "") if there is none."""
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except (ValueError, RecursionError):
            return 0, ""
    secret = meta.get("uuid") if isinstance(meta, dict) else None
    if not isinstance(secret, str) or len(secret) < 8 or (at := text.find(secret)) < 1:
        return 0, ""
    return at, secret
