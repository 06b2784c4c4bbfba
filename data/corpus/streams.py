r"""The bytes and the characters of a file, piece by piece: as it stands or unpacked from gzip, in a given encoding.

A packed file may promise more than a disk holds. So what comes out is bounded by what went in. Line ends become "\n".
This module knows nothing about what a file means.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from ppo.io.files import naming_file
from ppo.io.plain_files import open_plain

CHUNK_BYTES = 2**20
MOST_UNPACKED = 250  # bytes from one packed byte; text packs 3 to 20 to one, and a bomb a thousand
MAX_LINE_CHARACTERS = 2**24


def is_packed(path: Path) -> bool:
    """Whether a file's name says that it is packed with gzip."""
    return path.suffix.lower() == ".gz"


def byte_chunks(path: Path) -> Iterator[bytes]:
    """The content of a plain file in pieces, unpacked if its name ends in .gz.

    ValueError for what is no plain file, for damaged gzip, and for one that unpacks to more than ``MOST_UNPACKED``
    times its size; OSError where it cannot be read.
    """
    with naming_file(path), open_plain(path) as file:
        if not is_packed(path):
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")
            return
        num_bytes = 0
        with gzip.GzipFile(fileobj=file) as unpacked:
            while True:
                try:
                    chunk = unpacked.read(CHUNK_BYTES)
                except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                    raise ValueError(f"it is no whole gzip file ({error})") from error
                if not chunk:
                    return
                num_bytes += len(chunk)
                if num_bytes > MOST_UNPACKED * (file.tell() + CHUNK_BYTES // MOST_UNPACKED):
                    raise ValueError(f"it unpacks to more than {MOST_UNPACKED} times its size; unpack it yourself")
                yield chunk


def text_chunks(path: Path, encoding: str) -> Iterator[str]:
    r"""The same as text. "\r\n" and "\r" become "\n". UnicodeDecodeError where the encoding does not fit."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)("strict"), translate=True)
    for chunk in byte_chunks(path):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def text_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    r"""(number from 1, line with its "\n"). ValueError for a line of more than ``MAX_LINE_CHARACTERS``."""
    number, left = 1, ""
    for chunk in text_chunks(path, encoding):
        *whole, last = chunk.split("\n")
        if whole:
            whole[0], left = left + whole[0], ""
        for line in whole:
            _check_length(line, number)
            yield number, line + "\n"
            number += 1
        left += last
        _check_length(left, number)
    if left:
        yield number, left


def _check_length(line: str, number: int) -> None:
    if len(line) > MAX_LINE_CHARACTERS:
        raise ValueError(f"line {number} is longer than {MAX_LINE_CHARACTERS} characters; is this a text file?")
