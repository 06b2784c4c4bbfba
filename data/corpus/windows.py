"""Windows of tokens: a prefix that a model is given, and the suffix that is asked for, all along a document.

Suffixes stand ``stride`` tokens apart, and the last one ends where the document ends. Each is asked for behind every
prefix length for which there is room. This module knows tokens, no models; a BOS in front is the model's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from data.corpus.document import Document
from data.corpus.reading import Reading
from ppo.io.plain import is_whole

MOST_TOKENS = 2**20


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens: of the prefixes, ascending, of the suffix, and the ``stride`` from suffix to suffix.

    ``stride`` should not exceed ``suffix``: the tokens in between would not be asked for.
    """

    prefixes: tuple[int, ...] = (50,)
    suffix: int = 50
    stride: int = 25

    def __post_init__(self) -> None:
        for name, value in [*(("prefix", p) for p in self.prefixes), ("suffix", self.suffix), ("stride", self.stride)]:
            if not is_whole(value) or not 1 <= value <= MOST_TOKENS:
                raise ValueError(f"{name}={value!r} must be a whole number of tokens, 1 to {MOST_TOKENS}")
        if not self.prefixes or list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(f"prefixes={self.prefixes} must be at least one length, ascending, each once")


@dataclass(frozen=True)
class Place:
    """Where a window stands: ``start`` and ``end`` are those of its suffix, in characters of the document's text."""

    path: str
    name: str
    line: int
    start: int
    end: int
    is_folded: bool


@dataclass(frozen=True)
class Window:
    """Tokens ``first`` to ``middle - 1`` of a reading are the prefix, ``middle`` to ``last - 1`` the suffix."""

    reading: Reading
    first: int
    middle: int
    last: int

    @property
    def document(self) -> Document:
        """The document that it stands in."""
        return self.reading.document

    @property
    def prefix(self) -> tuple[int, ...]:
        """Ids of the prefix."""
        return tuple(self.reading.ids[self.first : self.middle].tolist())

    @property
    def suffix(self) -> tuple[int, ...]:
        """Ids of the suffix."""
        return tuple(self.reading.ids[self.middle : self.last].tolist())

    @property
    def start(self) -> int:
        """Where the prefix begins in the document's text."""
        return self.reading.span(self.first, self.middle)[0]

    @property
    def cut(self) -> int:
        """Where the suffix begins."""
        return self.reading.span(self.middle, self.last)[0]

    @property
    def end(self) -> int:
        """Where the suffix ends."""
        return self.reading.span(self.middle, self.last)[1]

    @property
    def is_start(self) -> bool:
        """Whether the prefix is the beginning of a whole document."""
        return self.first == 0 and self.document.is_start

    @property
    def place(self) -> Place:
        """Where the suffix stands; holds no text and no tokens."""
        start, end = self.reading.span(self.middle, self.last)
        document = self.document
        return Place(document.path, document.name, document.line_of(start), start, end, self.reading.is_folded)


def windows(reading: Reading, shape: Shape) -> Iterator[Window]:
    """All windows of a reading, by the place of the suffix, then by the length of the prefix.

    A reading that is shorter than the shortest prefix and a suffix has none. A folded reading has those alone in which
    folding changed something: the others stand in the text as it is, too.
    """
    for middle in suffix_starts(len(reading.ids), shape):
        for length in shape.prefixes:
            first, last = middle - length, middle + shape.suffix
            if first >= 0 and (not reading.is_folded or reading.num_changed[first] < reading.num_changed[last]):
                yield Window(reading, first, middle, last)


def suffix_starts(num_tokens: int, shape: Shape) -> list[int]:
    """Where the suffixes begin. Example: 10 tokens, prefix 3, suffix 3, stride 3 give 3, 6 and, at the end, 7."""
    last = num_tokens - shape.suffix
    if last < shape.prefixes[0]:
        return []
    starts = list(range(shape.prefixes[0], last + 1, shape.stride))
    return starts if starts[-1] == last else [*starts, last]


@dataclass
class Distinct:
    """Numbers windows, so that equal ones are measured once: same ids, cut in prefix and suffix at the same token.

    ``places``: of every number, in the order of the windows. The same characters are one place, whether they were
    found as they stand or folded. Memory: some 500 bytes for each number, no text.
    """

    places: list[list[Place]] = field(default_factory=list)
    _numbers: dict[bytes, int] = field(default_factory=dict, repr=False)
    _here: set[tuple[int, int, int]] = field(default_factory=set, repr=False)  # of the document that was last seen
    _document: str = ""

    def new(self, found: Iterable[Window]) -> Iterator[tuple[int, Window]]:
        """(number, window) of every window that did not come before. All of them get their place."""
        for window in found:
            number, place = self._numbers.setdefault(_key(window), len(self.places)), window.place
            if place.name != self._document:
                self._document, self._here = place.name, set()
            is_new = number == len(self.places)
            if is_new:
                self.places.append([])
            if (characters := (number, place.start, place.end)) not in self._here:
                self._here.add(characters)
                self.places[number].append(place)
            if is_new:
                yield number, window


def _key(window: Window) -> bytes:
    ids = window.reading.ids[window.first : window.last]
    digest = blake2b(ids.tobytes(), digest_size=16)
    digest.update((window.middle - window.first).to_bytes(8, "little"))
    return digest.digest()
