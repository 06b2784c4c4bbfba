"""Which words of a passage are its own, and which it shares with the other passages: an estimate from the texts alone.

Records of one form repeat the words of the form and differ in names and numbers. A word is *shared* when it stands in a
pair of words that another passage has, and *private* otherwise. A shared word is private all the same when it fills a
blank: where others have the two words before it (or after it) too, most of them go on differently. Usual words and
signs, such as an "at" between two blanks, are shared unless they fill a blank. Where each passage is a text of its own,
nearly every other word is private. This module knows texts, no tokens, no models.

On the lab, whose generator knows which tokens it filled in, 72 % of the tokens that are called private are (another
10 % are one of several wordings that it chose), and 77 % of the private ones are found;
tests/data/test_private_words.py measures it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import regex

MOST_OTHERS = 4000  # passages that are counted; of more, every n-th
_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts without spaces
_INSIDE = rf"[[^\W_]--[{_ALONE}]]+"
_WORD = regex.compile(rf"(?V1)[{_ALONE}]|{_INSIDE}(?:[-'\u2019.@/&+:,_]{_INSIDE})*|[^\w\s]|_")

Item = TypeVar("Item")
Text = tuple[str, str]
"""The prompt of a passage (all that stands before its suffix) and its suffix."""


@dataclass(frozen=True)
class Word:
    """A word or a sign of a suffix, and the characters ``start`` to ``end`` where it stands."""

    text: str
    start: int
    end: int
    is_private: bool

    @property
    def is_sign(self) -> bool:
        """Whether it is punctuation, not a word."""
        return not any(character.isalnum() for character in self.text)


def mark_private(texts: Sequence[Text], others: Sequence[Text] = ()) -> list[list[Word]]:
    """The words of every suffix, each with whether it is private.

    ``others``: further passages to hold them against; a text that occurs twice counts once. Example: among "call Ann
    at 5512", "call Bob at 7704" and "call Eve at 3391" the names and the numbers are private.
    """
    own, more = [_words(*text) for text in texts], [_words(*text) for text in thinned(others)]
    counts, usual = _Counts.of(own, more), usual_words([*own, *more])
    return [_marked(text, counts, usual) for text in texts]


def usual_words(texts: Sequence[Sequence[str]]) -> set[str]:
    """Signs and words in small letters that stand in more than a tenth of the texts, and in three at least."""
    whole = dict.fromkeys(map(tuple, texts))
    counts = Counter(word for text in whole for word in set(text))
    least = max(3, len(whole) // 10 + 1)
    return {word for word, count in counts.items() if count >= least and (word[0].islower() or not word[0].isalnum())}


def thinned(items: Sequence[Item]) -> Sequence[Item]:
    """At most ``MOST_OTHERS`` of the items, evenly spaced."""
    return items[:: -(-len(items) // MOST_OTHERS)] if items else items


def _words(prompt: str, suffix: str) -> tuple[str, ...]:
    return (*_WORD.findall(prompt), *_WORD.findall(suffix))


def _marked(text: Text, counts: _Counts, usual: set[str]) -> list[Word]:
    words, found = _words(*text), list(_WORD.finditer(text[1]))
    seen = _Counts.of([words])
    first = len(words) - len(found)
    return [
        Word(match.group(), match.start(), match.end(), counts.is_private(words, first + i, seen, usual))
        for i, match in enumerate(found)
    ]


@dataclass
class _Counts:
    """In how many texts a run of two or three words stands, and how many go on from two words, in either direction."""

    pairs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    triples: Counter[tuple[str, ...]] = field(default_factory=Counter)
    onwards: Counter[tuple[str, ...]] = field(default_factory=Counter)
    backwards: Counter[tuple[str, ...]] = field(default_factory=Counter)

    @classmethod
    def of(cls, texts: Sequence[tuple[str, ...]], others: Iterable[tuple[str, ...]] = ()) -> _Counts:
        """Counts over all texts, each once. Pairs that none of ``texts`` has are left out: nobody asks for them."""
        counts, wanted = cls(), {pair for text in texts for pair in _runs(text, 2)}
        for text in dict.fromkeys([*texts, *others]):
            counts.pairs.update(wanted & _runs(text, 2))
            for triple in _runs(text, 3):
                head, tail = triple[:2] in wanted, triple[1:] in wanted
                if head or tail:
                    counts.triples[triple] += 1
                    counts.onwards[triple[:2]] += head
                    counts.backwards[triple[1:]] += tail
        return counts

    def is_private(self, words: Sequence[str], place: int, own: _Counts, usual: set[str]) -> bool:
        """Whether the word at ``place`` is private. ``own``: the counts of this text alone, which do not count."""
        around = [tuple(words[i : i + 2]) for i in (place - 1, place) if 0 <= i < len(words) - 1]
        if words[place] not in usual and not any(self.pairs[pair] > own.pairs[pair] for pair in around):
            return True
        if not any(character.isalnum() for character in words[place]):
            return False
        shares = [
            self._share(run, own, is_last=start < place)
            for start in (place - 2, place)
            if start >= 0 and len(run := tuple(words[start : start + 3])) == 3
        ]
        is_expected = any(total and 2 * same >= total for same, total in shares)
        return not is_expected and any(total >= 2 and 2 * same < total for same, total in shares)

    def _share(self, run: tuple[str, ...], own: _Counts, *, is_last: bool) -> tuple[int, int]:
        """How many ways other texts go on from the pair of ``run``, and how many of them with its third word.

        The word in question is the last of the three, or the first. The result is (as here, in total).
        """
        pair, table, known = (
            (run[:2], self.onwards, own.onwards) if is_last else (run[1:], self.backwards, own.backwards)
        )
        total = table[pair] - known[pair]
        return self.triples[run] - own.triples[run], total


def _runs(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
