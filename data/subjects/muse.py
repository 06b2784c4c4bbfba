"""MUSE (Shi et al. 2024): news articles or books, a part of which is to be forgotten.

The files lie as the authors' script writes them: ``verbmem/forget.json`` (``prompt`` and ``gt``), ``raw/forget.json``
or ``forget.txt``, ``raw/retain1.json``, ``retain2.json``, ``holdout.json``; those of the hub have the same names. What
stands behind a prompt of ``verbmem`` is to be forgotten; without that file, all of ``forget``. The text to retain must
survive, and the model never saw the holdout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.subjects.source import Source
from data.subjects.tables import Table, missing, rows, tables, text_of

NAME = "MUSE"
_GROUPS = {"forget": "forget", "retain": "keep", "retain1": "keep", "retain2": "keep", "holdout": "never"}
_TEXTS = ("raw", "train", "privleak")  # folders of whole texts, the first that has a group's text counts


def read(folder: Path, split: str | None) -> Iterator[Source]:
    """The texts of one of the two corpora. ``split`` is not used."""
    if split is not None:
        raise ValueError(f"--data-split {split!r:.60} does not apply to {NAME}; leave it out")
    found = [table for table in tables(folder) if table.name in _GROUPS and "knowmem" not in table.folders]
    prompts = [table for table in found if "verbmem" in table.folders and table.name == "forget"]
    for table in prompts:
        for place, row in rows(table):
            prompt, text = (text_of(row, key, place, NAME) for key in ("prompt", "gt"))
            yield Source(place, "verbmem", "forget", text=text, prompt=prompt if prompt[-1].isspace() else prompt + " ")
    whole = _whole([table for table in found if table not in prompts])
    if not prompts and not whole.get("forget"):
        raise missing(folder, NAME, ["verbmem/forget", "raw/forget"])
    for group, chosen in whole.items():
        for table in chosen if group != "forget" or not prompts else ():
            for place, row in rows(table):
                yield Source(place, table.name, group, text=text_of(row, "text", place, NAME), is_long=True)


def _whole(found: list[Table]) -> dict[str, list[Table]]:
    """For each group the files of whole texts; of .json and .txt with one name the .json, which parts the texts."""
    chosen: dict[str, list[Table]] = {}
    for group in ("forget", "keep", "never"):
        candidates = [table for table in found if _GROUPS[table.name] == group]
        for folder in (*_TEXTS, None):
            here = [table for table in candidates if folder is None or folder in table.folders]
            names = {table.name for table in here if table.path.suffix != ".txt"}
            if here:
                chosen[group] = [t for t in here if t.path.suffix != ".txt" or t.name not in names]
                break
    return chosen
