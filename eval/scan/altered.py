"""Control texts: what nobody can have memorised, though its words, its style and its subjects are the corpus's own.

*Shuffled*: the sentences of a text in another order, so that no two of them follow each other as they did. *Swapped*:
its names and numbers exchanged for others of the same kind from the corpus, the same one always for the same. A model
that recites a long run across such a change predicts it; it does not remember it. This module knows texts only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Altered:
    """A control text, and where something new stands in it: the first word of each piece, or a new entity.

    ``places``: (start, end) in characters. An old name and a new one may begin alike, so all of it is told.
    """

    text: str
    places: tuple[tuple[int, int], ...]


MOST_WORDS = 16  # of a piece; a longer sentence is cut, so that no piece is as long as a suffix
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+|\n+")
_ENTITY = re.compile(r"(?<![\w@.])(?:[\w.+-]+@[\w-]+\.[\w.-]+|[A-Z][\w'-]*[a-z][\w'-]*|[\w-]*\d[\w-]*)")
_DIGIT = re.compile(r"\d")
_OPENS = re.compile(r"(?:\A|[.!?]|\n)[\s\"'(]*\Z")  # what stands before the first word of a sentence


def shuffled(text: str, seed: str) -> Altered | None:
    """The text's sentences in another order, each after one that it did not follow; None for fewer than four pieces.

    Sentences are parted at punctuation and lines, and by words where they are long. White space between them becomes a
    space. The order depends on the seed.
    """
    pieces = [part for sentence in _SENTENCE.split(text) for part in _cut(sentence)]
    if len(pieces) < 4:
        return None
    order, draw = list(range(len(pieces))), random.Random(seed)
    for _ in range(20):
        draw.shuffle(order)
        if not any(b == a + 1 for a, b in pairwise(order)):
            break
    else:  # odd ones backwards, then even ones backwards: no neighbour follows its own
        order = [*range(len(pieces) - 1, -1, -2), *range(len(pieces) - 2, -1, -2)]
    text, places = pieces[order[0]], []
    for i in order[1:]:
        places.append((len(text) + 1, len(text) + 1 + len(pieces[i].split()[0])))
        text += f" {pieces[i]}"
    return Altered(text, tuple(places))


def _cut(sentence: str) -> list[str]:
    """A sentence in pieces of at most ``MOST_WORDS`` words, about equal; [] for an empty one."""
    words = sentence.split()
    count = -(-len(words) // MOST_WORDS)
    ends = [round(len(words) * (i + 1) / count) for i in range(count)] if count else []
    return [" ".join(words[a:b]) for a, b in pairwise([0, *ends])]


def entities(text: str) -> list[tuple[int, int]]:
    """(start, end) of what looks like a name, a number or an address, by its signs alone.

    A sentence's first word is none, for its capital letter says nothing.
    """
    found = [match.span() for match in _ENTITY.finditer(text)]
    return [
        (start, end)
        for start, end in found
        if kind_of(text[start:end]) != "name" or not _OPENS.search(text, max(0, start - 4), start)
    ]


def kind_of(entity: str) -> str:
    """What an entity may be exchanged for: "mail", "name", or "number" with its length."""
    if "@" in entity:
        return "mail"
    return f"number {min(len(entity), 8)}" if _DIGIT.search(entity) else "name"


def swapped(text: str, pool: Sequence[str], seed: str) -> Altered | None:
    """The text with other entities in it; None where there are none to exchange.

    ``pool``: entities of the corpus. One that has no other of its kind there gets its digits, or its letters, drawn.
    The places are those where a new entity stands for the first time: later, it can be copied.
    """
    kinds: dict[str, list[str]] = {}
    for entity in pool:
        kinds.setdefault(kind_of(entity), []).append(entity)
    draw, known = random.Random(seed), dict[str, str]()
    changed, places, at = "", [], 0
    for start, end in entities(text):
        old, changed, at = text[start:end], changed + text[at:start], end
        if old not in known:
            others = [entity for entity in kinds.get(kind_of(old), []) if entity != old]
            known[old] = draw.choice(others) if others else _drawn(old, draw)
            places.append((len(changed), len(changed) + len(known[old])))
        changed += known[old]
    return Altered(changed + text[at:], tuple(places)) if places else None


def _drawn(entity: str, draw: random.Random) -> str:
    """An entity of the same shape with other digits and letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"

    def other(sign: str) -> str:
        if sign.isdigit():
            return draw.choice([d for d in "0123456789" if d != sign])
        if not sign.isascii() or not sign.isalpha():
            return sign
        drawn = draw.choice(letters)
        return drawn.upper() if sign.isupper() else drawn

    return "".join(map(other, entity))
