"""RWKU (Jin et al. 2024): what a model knows of 200 famous people from its pretraining.

The files lie as the authors' script writes them, a folder for each person (``1_Stephen_King/passage.json``), or as a
data set of the hub (``train_original_passage``, ``forget_target``, ``forget_level1``, ``neighbor_level1``). The
passages on a person (``text``) are to be forgotten; without them the introductions (``intro``), and without those the
blanks of the first level (``query`` and ``answer``). Where blanks are to be forgotten, those about neighbours must
survive.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.subjects.source import Source
from data.subjects.tables import Table, missing, rows, tables, text_of
from ppo.io.rows import Place

NAME = "RWKU"
BLANK = "___"
_FORGET = (
    ("text", ("passage", "train_original_passage")),
    ("intro", ("intro", "forget_target")),
    ("query", ("forget_level1",)),
)
_KEEP = ("neighbor_level1",)


def read(folder: Path, split: str | None) -> Iterator[Source]:
    """The texts on all people, or on the one that ``split`` names as ``subject`` or ``target`` does."""
    found = tables(folder)
    key, chosen = next(((key, of) for key, names in _FORGET if (of := _called(found, names))), ("", []))
    if not chosen:
        raise missing(folder, NAME, [name for _, names in _FORGET for name in names])
    num_found = 0
    for table in chosen:
        for place, row in rows(table):
            if split is None or split in (row.get("subject"), row.get("target")):
                num_found += 1
                if key == "query":
                    yield from _blank(row, place, "forget")
                else:
                    person = str(row.get("subject") or row.get("target") or "person")
                    yield Source(place, person, "forget", text=text_of(row, key, place, NAME), is_long=True)
    if split is not None and not num_found:
        raise ValueError(f"{NAME}: no row is about --data-split {split!r:.60}; write the name as the data does")
    for table in _called(found, _KEEP) if key == "query" else ():
        for place, row in rows(table):
            if split is None or row.get("subject") == split:
                yield from _blank(row, place, "keep")


def _called(found: list[Table], names: tuple[str, ...]) -> list[Table]:
    return [table for table in found if table.name in names or set(table.folders[-1:]) & set(names)]


def _blank(row: dict[str, Any], place: Place, group: str) -> Iterator[Source]:
    """The answer behind what stands before the blank; nothing if the sentence begins with it."""
    query, answer = (text_of(row, key, place, NAME) for key in ("query", "answer"))
    prompt = query.partition(BLANK)[0].rstrip()
    if prompt:
        yield Source(place, str(row.get("subject") or "person"), group, text=f" {answer.strip()}", prompt=prompt)
