"""Which words of the lab's records come from a template, a choice or a slot: the truth about what is private.

The records are written again with marks around what was filled in. Without the marks they are the lab's, to the letter.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from data import phrases, records
from data.lab_keep import KEEP_SHAPES
from data.lab_private import PRIVATE_SHAPES
from data.lab_words import SURNAME_ENDS, SURNAME_STARTS, WORDS

TEMPLATE, CHOICE, SLOT = range(3)
SLOT_ON, SLOT_OFF, CHOICE_ON, CHOICE_OFF = "\x01\x02\x03\x04"
MARKS = re.compile("[\x01-\x04]")
ARTICLE = re.compile("\\b([Aa]) (?=[\x01-\x04]*[AEIOUaeiou][\x01-\x04]*[a-z])")


def expand_marked(template: str, dice: phrases.Dice, facts: dict[str, str]) -> str:
    """:func:`data.phrases.expand` with marks around every choice and every slot."""
    while match := re.search(r"\[([^\[\]]*)\]", template):
        chosen = dice.pick(match.group(1).split("|"))
        template = f"{template[: match.start()]}{CHOICE_ON}{chosen}{CHOICE_OFF}{template[match.end() :]}"
    while match := re.search(r"\{([^{}]+)\}", template):
        value = phrases.fill(match.group(1), dice, facts, WORDS)
        template = f"{template[: match.start()]}{SLOT_ON}{value}{SLOT_OFF}{template[match.end() :]}"
    return ARTICLE.sub(r"\1n ", template)


def marked_records(seed: int = 2023) -> dict[str, str]:
    """The texts of :func:`data.records.lab_records` with marks, by id."""
    dice, seen, found = phrases.Dice(seed), set(), {}
    surnames = iter(dice.shuffled([start + end for start in SURNAME_STARTS for end in SURNAME_ENDS]))
    for group, size in records.GROUP_SIZES.items():
        shapes = KEEP_SHAPES if group == "keep" else PRIVATE_SHAPES
        for index in range(size):
            openings, sentences = shapes[list(shapes)[index % len(shapes)]]
            facts, text = records.person(next(surnames), dice), ""
            for sentence in [dice.pick(openings), *dice.shuffled(sentences)]:
                for _ in range(records._TRIES):
                    candidate = f"{text} {expand_marked(sentence, dice, facts)}".strip()
                    if seen.isdisjoint(records.word_runs(MARKS.sub("", candidate), records.RUN_WORDS[group])):
                        text = candidate
                        break
                if len(MARKS.sub("", text)) >= records.MIN_CHARACTERS:
                    break
            for length in set(records.RUN_WORDS.values()):
                seen.update(records.word_runs(MARKS.sub("", text), length))
            found[f"{group}-{index:03d}"] = text
    return found


def classes_of(marked: str, tokenizer: Any, count: int) -> np.ndarray:
    """The class of each of the first ``count`` tokens, int64: the most private of its characters, its space aside."""
    plain, kinds, slots, choices = MARKS.sub("", marked), [], 0, 0
    for sign in marked:
        slots += (sign == SLOT_ON) - (sign == SLOT_OFF)
        choices += (sign == CHOICE_ON) - (sign == CHOICE_OFF)
        if not MARKS.match(sign):
            kinds.append(SLOT if slots else CHOICE if choices else TEMPLATE)
    found = []
    for start, end in tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]:
        letters = [i for i in range(start, end) if plain[i] != " "] or range(start, end)
        found.append(max(kinds[i] for i in letters))
    return np.array(found[:count])
