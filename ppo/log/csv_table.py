"""The metrics of a run as a table: metrics.csv, a row each step, for spreadsheets and plotting programs.

The columns are ``step`` and every metric seen so far, in the order of their first appearance. A cell is empty when its
step has no such metric; a probe, for example, measures only every few steps. A name or a text that a spreadsheet would
take for a formula has ' in front. This module knows names and numbers.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from numbers import Real
from pathlib import Path
from typing import Any

from ..io.files import naming_file
from ..io.plain_files import append_text, new_text, open_plain
from ..io.visible import visible

MOST_SIGNS = 1000  # of a name or a text
_FORMULA = ("=", "+", "-", "@")  # what begins one, after white space too


class CsvTable:
    """Appends rows to a CSV file. A row with a new column rewrites the whole file; the new file replaces the old one
    in one step.

    ``rows``: the first rows of the file. They replace what was in it before.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, float]] = ()) -> None:
        self._path = path
        self._columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
        self._replace(rows)

    def append(self, row: Mapping[str, float]) -> None:
        """Add one row at the end."""
        new = [name for name in row if name not in self._columns]
        if new:
            with TextIOWrapper(open_plain(self._path), encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))[1:]
            self._columns += new
            self._write(rows)
        with naming_file(self._path), append_text(self._path, newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(self._cells(row))

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write([self._cells(row) for row in rows])

    def _cells(self, row: Mapping[str, Any]) -> list[Any]:
        return [no_formula(row.get(name, "")) for name in self._columns]

    def _write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write the header and rows of cells, of which the last may be left out."""
        temporary = self._path.with_name(self._path.name + ".tmp")
        with naming_file(self._path), new_text(temporary, newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(no_formula, self._columns))
            writer.writerows([*row, *[""] * (len(self._columns) - len(row))] for row in rows)
        os.replace(temporary, self._path)


def no_formula(cell: Any) -> Any:
    """A cell as a spreadsheet may open it: a text that it would compute gets ' in front; numbers stay as they are."""
    if cell is None or isinstance(cell, Real):
        return cell
    text = visible(str(cell))[:MOST_SIGNS]  # a line of a log that somebody sent may hold anything
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
