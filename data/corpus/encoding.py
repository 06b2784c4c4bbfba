"""In which encoding a file is written: as it declares, or as its bytes show, and what is no text at all.

In this order: a byte-order mark; UTF-16 or UTF-32 without one, by the places of the zeros; the declaration of a page
(``<meta charset>``), of XML or of Python; strict UTF-8; what charset-normalizer takes it for, where it is installed;
cp1252; latin-1. The last three are guesses, and the result says so. This module knows bytes.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import regex

HEAD_BYTES = 2**16  # looked at to find out what a file is
GUESS_BYTES = 2**17  # of which an encoding is guessed
DECLARED_BYTES = 2**12
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = (
    regex.compile(rb"""(?i)<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w:.-]{1,40})"""),
    regex.compile(rb"""^<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w:.-]{1,40})"""),
    regex.compile(rb"""^(?:[^\n]{0,200}\n)?[ \t\f]*#[^\n]{0,100}?coding[:=][ \t]*([\w.-]{1,40})"""),
)
_NOT_DECLARED = {"utf-7", "idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "utf-16", "utf-32"}
_UNPACK = "unpack it, or pack it with gzip"
_KINDS = (
    (b"%PDF-", "a PDF; extract its text"),
    (b"PK\x03\x04", "a ZIP archive or an office document; extract its text"),
    (b"{\\rtf", "RTF; save it as text"),
    (b"\x28\xb5\x2f\xfd", f"packed with zstd; {_UNPACK}"),
    (b"BZh", f"packed with bzip2; {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"packed with xz; {_UNPACK}"),
    (b"\x1f\x8b", "packed with gzip, but not called .gz; rename it"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\x00", "a database"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\v\b\x1b\x1a")) + b"\x7f"
WESTERN = "cp1252"
CLOSE = 0.05  # of charset-normalizer's coherence; French and Spanish lie within it, Turkish 0.09 beyond
MOST_CONTROLS = 0.01  # of the bytes of a text


class NoTextError(ValueError):
    """A file is no text; the message says what it is instead."""


@dataclass(frozen=True)
class Encoding:
    """``name``: as Python calls it. ``how``: "byte-order mark", "places of the zeros", "declared", "utf-8" or
    "guessed".
    """

    name: str
    how: str


def find_encoding(read: Callable[[], Iterator[bytes]]) -> tuple[Encoding, int]:
    """The encoding of a file, and its length in bytes. ``read`` gives its bytes in pieces, anew at each call.

    NoTextError for binary content. All bytes are looked at, so decoding the same bytes raises no error afterwards.
    """
    head = _head(read)
    _check_kind(head)
    for encoding in _candidates(head):
        length = _length_if_right(encoding.name, read())
        if length is not None:
            return encoding, length
    raise NoTextError("binary")  # latin-1 fits any bytes, but for those of which nothing was tried


def _head(read: Callable[[], Iterator[bytes]]) -> bytes:
    head = b""
    for chunk in read():
        head += chunk[: GUESS_BYTES - len(head)]
        if len(head) >= GUESS_BYTES:
            break
    return head


def _check_kind(head: bytes) -> None:
    for start, kind in _KINDS:
        if head.startswith(start):
            raise NoTextError(kind)


def _candidates(head: bytes) -> Iterator[Encoding]:
    for mark, name in _MARKS:
        if head.startswith(mark):
            yield Encoding(name, "byte-order mark")
            return
    if name := _by_zeros(head[:HEAD_BYTES]):
        yield Encoding(name, "places of the zeros")
        return
    start = head[:HEAD_BYTES]
    if b"\x00" in start:
        raise NoTextError("binary: it holds zero bytes")
    if len(start) - len(start.translate(None, _CONTROLS)) > MOST_CONTROLS * len(start):
        raise NoTextError("binary: it holds control characters")
    if name := _declared(head[:DECLARED_BYTES]):
        yield Encoding(name, "declared")
    yield Encoding("utf-8", "utf-8")
    for name in _guesses(head):
        yield Encoding(name, "guessed")


def _by_zeros(start: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, as text of mostly Latin letters shows it. The name of the encoding, or None."""
    if len(start) < 8:
        return None
    whole = start[: len(start) // 4 * 4]
    zeros = [whole[place::4].count(0) / (len(whole) / 4) for place in range(4)]
    for places, name in (((1, 2, 3), "utf-32-le"), ((0, 1, 2), "utf-32-be")):
        if all((zeros[i] > 0.5) == (i in places) for i in range(4)) and all(zeros[i] > 0.95 for i in places[1:]):
            return name
    for places, name in (((1, 3), "utf-16-le"), ((0, 2), "utf-16-be")):
        if all(zeros[i] > 0.4 if i in places else zeros[i] < 0.05 for i in range(4)):
            return name
    return None


def _declared(head: bytes) -> str | None:
    for pattern in _DECLARED:
        if found := pattern.search(head):
            try:
                codec = codecs.lookup(found[1].decode("ascii"))
            except (LookupError, UnicodeDecodeError):
                continue
            name = {"iso8859-1": "cp1252", "ascii": "cp1252"}.get(codec.name, codec.name)  # as browsers take them
            if getattr(codec, "_is_text_encoding", True) and name not in _NOT_DECLARED:
                return name
    return None


def _guesses(head: bytes) -> Iterator[str]:
    """Names of encodings, the likeliest first. Where cp1252 reads as well as the best, it is first: it is usual."""
    try:
        import charset_normalizer
    except ImportError:
        pass
    else:
        matches = charset_normalizer.from_bytes(head)
        if best := matches.best():
            western = [m for m in matches if WESTERN in (m.encoding, *m.could_be_from_charset)]
            is_close = any(m.chaos <= best.chaos and m.coherence > best.coherence - CLOSE for m in western)
            yield WESTERN if is_close else best.encoding
    yield from (WESTERN, "latin-1")


def _length_if_right(name: str, chunks: Iterable[bytes]) -> int | None:
    """The number of bytes if all of them are text in the encoding, else None."""
    decoder, length = codecs.getincrementaldecoder(name)("strict"), 0
    try:
        for chunk in chunks:
            decoder.decode(chunk)
            length += len(chunk)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return None
    return length
