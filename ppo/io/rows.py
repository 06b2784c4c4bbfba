"""Reading untrusted rows: text, CSV and JSONL files line by line, and arrays of token ids. Errors name file and line.

A row comes with its place ("rows.csv, line 3") for later errors. Lines are decoded one by one and bounded in length, so
a hostile file cannot fill the memory at once. If an array's header promises more than the file holds, that is an error
before any memory is taken. Nothing is unpickled. This module knows nothing about prompts or tokenizers.
"""

from __future__ import annotations

import csv
import json
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import naming_file
from .plain_files import open_plain
from .surrogates import refuse_written_surrogates
from .visible import visible

MAX_LINE_BYTES = 16 * 2**20
MAX_LINES = 5_000_000  # of a file; it is said after some seconds, however many there are
Place = str
"""Where a row stands, for error messages: "rows.csv, line 3"."""
_NPY_ERRORS = (
    ValueError, EOFError, OSError, OverflowError, TypeError, SyntaxError, RecursionError, MemoryError, KeyError,
    tokenize.TokenError,
)  # what numpy raises for a broken header  # fmt: skip


def byte_lines(path: Path) -> Iterator[tuple[Place, bytes]]:
    """(place, line with its line end) of a file, not decoded. Raises ValueError that names a line that is too long."""
    if not path.is_file():
        raise ValueError(f"{visible(str(path))} is not a file; check the path")
    name = visible(str(path))
    with naming_file(path), open_plain(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            place = f"{name}, line {number}"
            if number > MAX_LINES:
                raise ValueError(f"{name} has more than {MAX_LINES} lines; split it")
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{place} is longer than {MAX_LINE_BYTES} bytes; is this a text file?")
            yield place, line


def text_lines(path: Path) -> Iterator[tuple[Place, str]]:
    """(place, line with its line end) of a UTF-8 file without its byte-order mark. ValueError names file and line."""
    for number, (place, line) in enumerate(byte_lines(path)):
        try:
            yield place, line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place} is not UTF-8 ({error}); convert the file to UTF-8") from error


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[Place, dict[str, str]]]:
    """(place, row) of a CSV file with a header line that names at least ``columns``.

    Raises ValueError for a missing or repeated column, a wrong number of fields, or broken quoting. It names the file,
    the line and a remedy.
    """
    name = visible(str(path))
    reader = csv.reader((_with_line_feed(line) for _, line in text_lines(path)), strict=True)
    try:
        header = next_fields(reader) or []
        for column in columns:
            if header.count(column) != 1:
                raise ValueError(
                    f"{name}, line 1: the header {header!r:.200} must name the column {column!r} once; "
                    f"expected columns: {', '.join(columns)}{_other_separator(header)}"
                )
        while (fields := next_fields(reader)) is not None:
            place = f"{name}, line {reader.line_num}"
            if fields and len(fields) != len(header):
                raise ValueError(
                    f"{place} has {len(fields)} fields, the header has {len(header)}; check commas and quotes"
                )
            if fields:
                yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num} is malformed CSV ({error}); check its quotes") from error


def _with_line_feed(line: str) -> str:
    """A line with the end that Python's own text mode gives it: files from Windows have two characters there."""
    return f"{line[:-2]}\n" if line.endswith("\r\n") else line


def next_fields(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row of a CSV reader, None at the end. A field may be as long as a line.

    The module ``csv`` has one limit for the whole process, 131072 characters; it is back as it was afterwards.
    """
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _other_separator(header: Sequence[str]) -> str:
    """What to do about a header in one piece, as spreadsheets write it in some languages."""
    found = [name for name, sign in (("semicolons", ";"), ("tabs", "\t")) if len(header) == 1 and sign in header[0]]
    return f"; the file has {found[0]} in place of commas: save it with commas" if found else ""


def kind_of_file(path: Path) -> str:
    """The ending of a file's name in lower case, such as ".csv": Windows and cameras write DATA.CSV."""
    return path.suffix.lower()


def jsonl_rows(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, object) of a JSON-lines file. Blank lines are skipped. Raises ValueError that names file and line.

    Half a character, which JSON can write, is refused too (:mod:`ppo.io.surrogates`).
    """
    for place, line in text_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, or a number that is too long
            raise ValueError(f"{place} is malformed JSON ({error}); write one object a line") from error
        refuse_written_surrogates(row, line, place)
        if not isinstance(row, dict):
            raise ValueError(f"{place} holds a {type(row).__name__}; write one JSON object a line")
        yield place, row


def read_ids(path: Path) -> np.ndarray:
    """A memory-mapped integer array [rows, tokens]. ValueError names the file, what it holds and what is expected."""
    name = visible(str(path))
    if not path.is_file():
        raise ValueError(f"{name} is missing; check the path")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NPY_ERRORS as error:
        raise ValueError(f"{name} is not a readable .npy array of numbers ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu":
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        raise ValueError(f"{name} holds shape {shape}, type {dtype}; expected integers of shape [rows, tokens]")
    if len(array) > path.stat().st_size:  # rows of no tokens take no bytes: a header could promise any number
        excess = "it declares more rows than the file has bytes"
        raise ValueError(f"{name} has the shape {array.shape}: {excess}; expected [rows, tokens]")
    return array
