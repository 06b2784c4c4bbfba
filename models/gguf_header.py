"""A check of a GGUF file's header before any library reads it: the file must hold what its header declares.

The package ``gguf`` trusts a header: for an array with a declared billion elements it makes a billion objects, even if
the file has a hundred bytes. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. This module reads no
weights.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ppo.io.console import shown_errors
from ppo.io.plain_files import open_plain

MAX_ELEMENTS = 4_000_000  # in all arrays together; a vocabulary of 300,000 needs three arrays of that size, and merges
MAX_STRING_BYTES = 2**24
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of scalar types, in bytes
_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass
class GGUFHeader:
    """What a header declares: its integers by key, and the shape of every tensor by name."""

    numbers: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@shown_errors()
def read_gguf_header(path: Path) -> GGUFHeader:
    """The header of a file. ValueError, naming the file, if it is cut off or declares more than the file holds."""
    with open_plain(path) as file:
        try:
            return _Walk(file, path.stat().st_size).header()
        except (ValueError, struct.error) as error:
            raise ValueError(f"GGUF model {path} is damaged: {error}; download it again") from error


@shown_errors()
def check_gguf(path: Path) -> None:
    """Raise ValueError for a file that is cut off, or whose header declares more than the file or its weights hold."""
    header = read_gguf_header(path)
    widest = max((size for shape in header.shapes.values() for size in shape), default=0)
    for key, value in header.numbers.items():
        quantity = key.rpartition(".")[2]
        limit = {"block_count": len(header.shapes), "embedding_length": widest, "vocab_size": widest}.get(quantity)
        if limit is not None and not 0 <= value <= limit:
            raise ValueError(f"GGUF model {path} is damaged: {key} is {value}, its weights allow {limit}")


class _Walk:
    """Reads a header from front to back, and never past the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._order = file, size, "<"
        self._elements = 0

    def header(self) -> GGUFHeader:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF")
        version = self._number("I")
        if version & 0xFFFF == 0:
            self._order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise ValueError(f"it has version {version}, not 2 or 3")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        self._check_room(num_tensors * 24 + num_keys * 13, f"{num_tensors} tensors and {num_keys} keys")
        header = GGUFHeader()
        for _ in range(num_keys):
            key, kind = self._string(), self._number("I")
            if kind in _INTEGERS:
                header.numbers[key] = self._number(_INTEGERS[kind])
            else:
                self._skip(kind, depth=0)
        for _ in range(num_tensors):
            name, num_dimensions = self._string(), self._number("I")
            if num_dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"the tensor {name!r:.60} has {num_dimensions} dimensions")
            header.shapes[name] = tuple(self._number("Q") for _ in range(num_dimensions))
            kind, start = self._number("I"), self._number("Q")
            elements = math.prod(header.shapes[name])
            if start + elements // 8 > self._size:  # every weight type takes at least one bit
                raise ValueError(f"the tensor {name!r:.60} of type {kind} extends beyond the end of the file")
        return header

    def _skip(self, kind: int, *, depth: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY and depth < 2:
            element, count = self._number("I"), self._number("Q")
            self._elements += count
            least = _SIZES.get(element, 8)
            self._check_room(count * least, f"an array of {count} elements")
            if self._elements > MAX_ELEMENTS:
                raise ValueError(f"its arrays have more than {MAX_ELEMENTS} elements")
            if element in _SIZES:
                self._take(count * least)
            else:
                for _ in range(count):
                    self._skip(element, depth=depth + 1)
        elif kind in _SIZES:
            self._take(_SIZES[kind])
        else:
            raise ValueError(f"it holds a value of type {kind}")

    def _string(self) -> str:
        length = self._number("Q")
        if length > MAX_STRING_BYTES:
            raise ValueError(f"it holds a string of {length} bytes")
        return self._take(length).decode("utf-8", errors="replace")

    def _number(self, code: str) -> int:
        return int(struct.unpack(self._order + code, self._take(struct.calcsize(code)))[0])

    def _check_room(self, length: int, what: str) -> None:
        left = self._size - self._file.tell()
        if length > left:
            raise ValueError(f"it promises {what}, but only {left} bytes are left")

    def _take(self, length: int) -> bytes:
        self._check_room(length, f"{length} more bytes")
        return self._file.read(length)
