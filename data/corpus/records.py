"""Rows of tables as documents: JSON, JSON lines, CSV, TSV and Parquet. A record's strings are a document each.

Strings are found however deep they lie; a string in a list or in an object within the record has a dotted name, such as
``messages.0.content``. Errors name the line. This module knows rows, nothing about folders or tokens.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from data.corpus.document import Document, lines_of
from data.corpus.files import PARQUET, CorpusFile
from data.corpus.streams import MAX_LINE_CHARACTERS, text_chunks, text_lines
from ppo.io.plain_files import open_plain
from ppo.io.rows import next_fields
from ppo.io.surrogates import without_surrogates

LONGEST_NAME = 100  # characters of a column's name; a longer cell of the first line is text, so there is no header
BATCH_ROWS = 64
MOST_GROUP_BYTES = 2**32  # of a row group of Parquet, as it says of itself
Skip = Callable[[str], None]  # called with the reason why something is left out
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?')


class NoJsonError(ValueError):
    """A file is no JSON; nothing of it was read as such."""


def json_documents(file: CorpusFile, fields: Sequence[str], skip: Skip | None = None) -> Iterator[Document]:
    """A file with one JSON value, or with one a line as some call ``.json``. NoJsonError if it is neither.

    The items of a list are its records; anything else is one record, which has the file's name.
    """
    source = "".join(text_chunks(file.path, file.encoding))
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        try:
            json.loads(source.partition("\n")[0])
        except (ValueError, RecursionError):
            raise NoJsonError(f"it is malformed JSON ({error!s:.200})") from error
        yield from jsonl_documents(file, fields, skip)
        return
    lines, all_strings = _string_lines(source), list(_strings(value))
    is_exact = len(lines) == len(all_strings)  # unless an object names a key twice
    for place, (path, string) in enumerate(all_strings):
        record, inner = (f"#{int(path[0]) + 1}", path[1:]) if isinstance(value, list) else ("", path)
        if name := _name(file.name + record, inner, fields):
            yield Document(file.name, name, string, ((0, lines[place] if is_exact else 1),))


def jsonl_documents(file: CorpusFile, fields: Sequence[str], skip: Skip | None = None) -> Iterator[Document]:
    """A file with one JSON value a line. Blank lines count as lines, not as records.

    ValueError for a malformed line. With ``skip``, that is called with the reason, and the line counts as a record.
    """
    number = 0
    for line_number, line in text_lines(file.path, file.encoding):
        if not line.strip():
            continue
        number += 1
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"line {line_number} is malformed JSON ({error!s:.200})"
            if skip is None:
                raise ValueError(f"{reason}; write one object a line") from error
            skip(reason)
            continue
        for path, string in _strings(record):
            if name := _name(f"{file.name}#{number}", path, fields):
                yield Document(file.name, name, string, ((0, line_number),))


def csv_documents(file: CorpusFile, fields: Sequence[str]) -> Iterator[Document]:
    """A table with commas, semicolons or tabs. Lines are exact within a field of several lines, too.

    The first line names the columns if it can: every cell is filled, short, and there once. In a table without such a
    line the columns are called 1, 2, 3 and so on, and so are cells that a row has beyond the header's.
    """
    rows = _csv_rows(file)
    first_line, header = next(rows, (1, []))
    if not _is_header(header):
        rows, header = chain([(first_line, header)], rows), []
    for number, (line, row) in enumerate(rows, start=1):
        for column, cell in enumerate(row):
            field = header[column] if column < len(header) else str(column + 1)
            if cell and (name := _name(f"{file.name}#{number}", (field,), fields)):
                yield Document(file.name, name, without_surrogates(cell), lines_of(cell, line))
            line += cell.count("\n")


def parquet_documents(file: CorpusFile, fields: Sequence[str]) -> Iterator[Document]:
    """The rows of a Parquet file, a few at a time; a document's line is the number of its row."""
    for number, record in parquet_rows(file.path):
        for path, string in _strings(record):
            if name := _name(f"{file.name}#{number}", path, fields):
                yield Document(file.name, name, string, ((0, number),))


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of a Parquet file, a few at a time. ValueError without pyarrow, and for a damaged file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(PARQUET) from error
    number = 0
    try:
        with open_plain(path) as source, parquet.ParquetFile(source) as table:
            groups = [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]
            if max(groups, default=0) > MOST_GROUP_BYTES:
                raise ValueError(f"a row group has {max(groups)} bytes, at most {MOST_GROUP_BYTES}; write smaller ones")
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"row {number + 1} cannot be read: {error!s:.200}") from error


def _strings(record: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of keys and places from 0, string) of every string of a record that is not empty, in its order.

    No recursion, and one path in memory: records may be deep and wide.
    """
    path: list[str] = []
    left = [iter([("", record)])]
    while left:
        step = next(left[-1], None)
        if step is None:
            left.pop()
            path = path[:-1]
            continue
        key, value = step
        if isinstance(value, dict):
            left.append((str(k), v) for k, v in value.items())
        elif isinstance(value, list):
            left.append((str(i), v) for i, v in enumerate(value))
        elif isinstance(value, str):
            yield (*path, key)[1:], without_surrogates(value).replace("\r\n", "\n").replace("\r", "\n")
            continue
        else:
            continue
        path.append(key)


def _name(record: str, path: Sequence[str], fields: Sequence[str]) -> str:
    """What a document is called, or "" if its field is not asked for.

    A field is asked for by its dotted name, with or without the places in lists. Where one field is asked for, the
    record's name is enough.
    """
    dotted, plain = ".".join(path), ".".join(part for part in path if not part.isdigit())
    if fields and not {dotted, plain} & set(fields):
        return ""
    is_only = not dotted or (len(fields) == 1 and dotted == plain)
    return record if is_only else f"{record}.{dotted}"


def _string_lines(source: str) -> list[int]:
    """The line of every string in a JSON text that is a value, no key."""
    lines, line, last = [], 1, 0
    for found in _STRING.finditer(source):
        if found[1] is None:
            line, last = line + source.count("\n", last, found.start()), found.start()
            lines.append(line)
    return lines


def _csv_rows(file: CorpusFile) -> Iterator[tuple[int, list[str]]]:
    """(line of the file where the row begins, cells). ValueError names the line of a broken one."""
    sign, pending = ",", 0

    def lines() -> Iterator[str]:
        nonlocal pending
        for _, line in text_lines(file.path, file.encoding):
            pending += len(line)
            if pending > 2 * MAX_LINE_CHARACTERS:
                raise ValueError(f"a row is longer than {2 * MAX_LINE_CHARACTERS} characters; is a quote not closed?")
            yield line

    first = next(text_lines(file.path, file.encoding), (1, ""))[1]
    sign = max(",;\t", key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))
    reader = csv.reader(lines(), delimiter=sign, strict=True)
    try:
        begin = 1
        while (row := next_fields(reader)) is not None:
            if row:
                yield begin, row
            begin, pending = reader.line_num + 1, 0
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is malformed CSV ({error}); check its quotes") from error


def _is_header(cells: Sequence[str]) -> bool:
    return bool(cells) and all(0 < len(cell) <= LONGEST_NAME for cell in cells) and len(set(cells)) == len(cells)
