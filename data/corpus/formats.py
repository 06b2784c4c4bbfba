"""Files as documents: plain text and code, HTML, JSON, JSON lines, CSV, TSV and Parquet, packed with gzip or not.

A file is read in pieces, so memory does not grow with it. This module knows which reader takes which file; the readers
of tables are in :mod:`data.corpus.records`, of pages in :mod:`data.corpus.html_text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.corpus.document import Document, lines_of
from data.corpus.files import CorpusFile
from data.corpus.html_text import html_text
from data.corpus.records import (
    NoJsonError,
    Skip,
    csv_documents,
    json_documents,
    jsonl_documents,
    parquet_documents,
)
from data.corpus.streams import text_chunks
from ppo.io.console import shown_errors
from ppo.io.files import naming

PIECE_CHARACTERS = 2**22  # of a text; a longer one comes in pieces
PIECE_LINES = 2**18
_TABLES = {
    "json": json_documents,
    "jsonl": jsonl_documents,
    "csv": lambda file, fields, skip: csv_documents(file, fields),
    "parquet": lambda file, fields, skip: parquet_documents(file, fields),
}


def read_file(file: CorpusFile, *, text_fields: Sequence[str] = (), skip: Skip | None = None) -> Iterator[Document]:
    """The documents of a file, in its order. Documents without a character are left out.

    ``text_fields``: the fields of records that are read; () means all that hold strings. Other files do not have any,
    so it does not apply to them. A ``.json`` file that is no JSON (a config with comments, say) is read as text.
    ValueError names the file, the line and what is wrong; documents before it have come by then. With ``skip`` it is
    called with the reason instead: a malformed line of JSON is left out, and of other files the rest of the file.
    """
    with shown_errors(), naming(file.path):
        num_documents = 0
        for document in _readable(file, text_fields, skip):
            if document.text:
                num_documents += 1
                yield document
        if not num_documents and text_fields and file.kind in _TABLES:
            raise ValueError(f"no record has a string under {', '.join(text_fields)}; check the name of the field")


def _readable(file: CorpusFile, fields: Sequence[str], skip: Skip | None) -> Iterator[Document]:
    """The documents up to what cannot be read."""
    try:
        yield from _documents(file, fields, skip)
    except ValueError as error:
        if skip is None:
            raise
        skip(f"{error}; what follows in the file is left out")


def _documents(file: CorpusFile, fields: Sequence[str], skip: Skip | None) -> Iterator[Document]:
    if file.kind == "html":
        text, lines = html_text("".join(text_chunks(file.path, file.encoding)))
        yield Document(file.name, file.name, text, lines)
    elif file.kind in _TABLES:
        try:
            yield from _TABLES[file.kind](file, fields, skip)
        except NoJsonError:
            yield from _pieces(file)
    else:
        yield from _pieces(file)


def _pieces(file: CorpusFile) -> Iterator[Document]:
    """A text whole, or in pieces that end where lines end, if any ends in one."""
    left, line, number = "", 1, 1
    for chunk in text_chunks(file.path, file.encoding):
        left += chunk
        while len(left) > PIECE_CHARACTERS or left.count("\n") > PIECE_LINES:
            cut = _cut(left)
            yield _piece(file, left[:cut], line, number)
            line, number, left = line + left.count("\n", 0, cut), number + 1, left[cut:]
    yield _piece(file, left, line, number)


def _cut(text: str) -> int:
    """Where the first piece of a text ends that is too long for one."""
    cut = text.rfind("\n", 0, PIECE_CHARACTERS) + 1 or PIECE_CHARACTERS
    if text.count("\n", 0, cut) <= PIECE_LINES:
        return cut
    cut = 0
    for _ in range(PIECE_LINES):
        cut = text.find("\n", cut) + 1
    return cut


def _piece(file: CorpusFile, text: str, line: int, number: int) -> Document:
    name = file.name if number == 1 else f"{file.name}#{number}"
    return Document(file.name, name, text, lines_of(text, line), is_start=number == 1)
