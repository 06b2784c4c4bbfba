"""The metrics of a run as a table: metrics.csv, a row each step, for spreadsheets and plotting programs.

The columns are ``step`` and every metric seen so far, in the order of their first appearance. A cell is empty when its
step has no such metric; a probe, for example, measures only every few steps. This module knows names and numbers.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path

from ..io.files import naming_file
from ..io.plain_files import append_text, new_text, open_plain


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
                rows = list(csv.DictReader(file))
            self._columns += new
            self._replace(rows)
        with naming_file(self._path), append_text(self._path, newline="") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    def _replace(self, rows: Sequence[Mapping[str, float]] | Sequence[Mapping[str, str]]) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        with naming_file(self._path), new_text(temporary, newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self._path)
