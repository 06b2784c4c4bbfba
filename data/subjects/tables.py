"""The files of a benchmark and their rows: JSON, JSON lines, CSV, text and Parquet, as the hub or a script wrote them.

A file of the hub such as ``raw/forget-00000-of-00001.parquet`` is called raw, forget, like ``raw/forget.json``. This
module knows files, nothing about a benchmark.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpus.records import parquet_rows
from ppo.io.files import naming, read_json
from ppo.io.rows import Place, csv_rows, jsonl_rows, kind_of_file, text_lines
from ppo.io.visible import visible

MOST_FILES = 20_000
MAX_JSON_BYTES = 2**27
MAX_TEXT_BYTES = 2**28
_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".txt")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")


@dataclass(frozen=True)
class Table:
    """A file. ``folders``: those it lies in, below the one that was given. ``name``: without its ending or shard."""

    path: Path
    folders: tuple[str, ...]
    name: str


def tables(folder: Path) -> list[Table]:
    """The files below a folder that can be read, in the order of their paths; or the file that was given itself.

    ValueError when there is none.
    """
    if folder.is_file():
        return [_table(folder, ())]
    found = []
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(at).relative_to(folder).parts
        found += [_table(Path(at, name), parts) for name in sorted(files) if kind_of_file(Path(name)) in _ENDINGS]
        if len(found) > MOST_FILES:
            raise ValueError(
                f"{visible(str(folder))} holds more than {MOST_FILES} files; give the benchmark's own folder"
            )
    if not folder.is_dir():
        raise ValueError(f"{visible(str(folder))} does not exist; check the path")
    if not found:
        raise ValueError(f"{visible(str(folder))} holds no file to read; expected {', '.join(_ENDINGS)}")
    return sorted(found, key=lambda table: table.path)


def _table(path: Path, folders: tuple[str, ...]) -> Table:
    return Table(path, folders, _SHARD.sub("", path.stem))


def rows(table: Table) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, row) of a file. A string where a row is expected becomes the row {"text": string}; so does a whole .txt.

    ValueError names the file, the row and the remedy.
    """
    path, kind = table.path, kind_of_file(table.path)
    name = visible(str(path))
    with naming(path):
        if kind == ".csv":
            yield from csv_rows(path, ())
        elif kind == ".parquet":
            for number, row in parquet_rows(path):
                yield f"{name}, row {number}", row
        elif kind == ".txt":
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise ValueError(f"it is longer than {MAX_TEXT_BYTES} bytes; give it as .jsonl, one text a row")
            yield name, {"text": "".join(line for _, line in text_lines(path)).replace("\r\n", "\n")}
        elif kind == ".json":
            yield from _json_rows(path, name)
        else:
            yield from jsonl_rows(path)


def _json_rows(path: Path, name: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of a list of objects or strings, of an object of columns, or of one object a line."""
    try:
        value = read_json(path, max_bytes=MAX_JSON_BYTES)
    except ValueError:
        yield from jsonl_rows(path)  # the hub calls such files .json as well
        return
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        length = {len(column) for column in value.values()}
        if len(length) != 1:
            raise ValueError(f"{name} holds columns of different lengths: {sorted(length)}")
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        row = {"text": row} if isinstance(row, str) else row
        if not isinstance(row, dict):
            raise ValueError(f"{name}, row {number} is a {type(row).__name__}; expected an object or a text")
        yield f"{name}, row {number}", row


def text_of(row: dict[str, Any], key: str, place: Place, benchmark: str) -> str:
    """A string of a row that must be there. ValueError says what the benchmark's rows hold."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{place} has the keys {sorted(map(str, row))[:20]}; a row of {benchmark} needs text in {key!r}"
        )
    return value


def missing(folder: Path, benchmark: str, wanted: Sequence[str]) -> ValueError:
    """The error for a folder without what a benchmark consists of."""
    return ValueError(f"{visible(str(folder))} holds no {' or '.join(wanted)}: is it a folder of {benchmark}?")
