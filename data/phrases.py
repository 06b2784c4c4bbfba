"""A small phrase grammar: templates with choices and slots, expanded by seeded random draws.

Template syntax
    [a|b|c]    one of the alternatives (they may nest and may hold slots)
    {####}     that many digits; {####-##} keeps the other characters
    {3-12}     a whole number from this range, both ends included
    {name}     a fact of the record (the same value at every use), or else a word drawn from the list of that name

A seed gives the same text under every Python version, because only ``random.Random.random`` is used: it is the only
method whose sequence Python promises to keep. This module knows nothing about records, tokenizers or models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")
_INNERMOST_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[AEIOUaeiou][a-z])")
_RANGE = re.compile(r"(\d+)-(\d+)")


class Dice:
    """Seeded draws that do not depend on the Python version."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, limit: int) -> int:
        """A whole number in [0, limit)."""
        return int(self._random.random() * limit)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """A new list of the items in random order (Fisher-Yates)."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result


def expand(template: str, dice: Dice, facts: Mapping[str, str], words: Mapping[str, Sequence[str]]) -> str:
    """Fill a template. ValueError names a slot that is neither a fact nor a word list.

    Example: ``expand("[Ring|Call] {first} at {9-11}.", …)`` may give "Call Maris at 10." The article "a" becomes "an"
    before a vowel.
    """
    while match := _INNERMOST_CHOICE.search(template):
        chosen = dice.pick(match.group(1).split("|"))
        template = template[: match.start()] + chosen + template[match.end() :]
    while match := _SLOT.search(template):  # a drawn word may hold slots itself
        value = fill(match.group(1), dice, facts, words)
        template = template[: match.start()] + value + template[match.end() :]
    return _ARTICLE.sub(r"\1n ", template)


def fill(slot: str, dice: Dice, facts: Mapping[str, str], words: Mapping[str, Sequence[str]]) -> str:
    """The text of one slot (without its braces)."""
    if slot in facts:
        return facts[slot]
    if slot in words:
        return dice.pick(words[slot])
    if "#" in slot:
        return re.sub("#", lambda _: str(dice.below(10)), slot)
    if span := _RANGE.fullmatch(slot):
        low, high = int(span.group(1)), int(span.group(2))
        return str(low + dice.below(high - low + 1))
    raise ValueError(f"template slot {{{slot}}} is neither a fact of the record nor a word list")
