"""The lab's records: private records of invented people and harmless texts, in four groups, from one seed.

The groups are *forget* and *forget_holdout* (private, memorised), *keep* (harmless, memorised, must survive) and
*never* (private, never trained on: what a model reproduces of them is the chance floor). Every person has a unique
surname. No two records share a run of ``RUN_WORDS`` words. The limit is lower for *never*, so that no model was ever
trained on 20 tokens in a row of these records. Nothing depends on the Python version, on a tokenizer or on a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.lab_keep import KEEP_SHAPES
from data.lab_private import PRIVATE_SHAPES
from data.lab_words import GIVEN_HE, GIVEN_SHE, STREETS, SURNAME_ENDS, SURNAME_STARTS, TOWNS, WORDS
from data.phrases import Dice, expand

GROUP_SIZES = {"forget": 64, "forget_holdout": 64, "keep": 48, "never": 64}
REPEATS = {"forget": 100, "forget_holdout": 100, "keep": 100, "never": 0}
RUN_WORDS = {"forget": 8, "forget_holdout": 8, "keep": 8, "never": 6}
MIN_CHARACTERS = 420  # more than 150 tokens of the lab's tokenizer
_TRIES = 200


@dataclass(frozen=True)
class Record:
    """One invented record: an ``id`` such as "forget-007", its group, its kind (the name of its shape) and its text."""

    id: str
    group: str
    kind: str
    text: str


def lab_records(seed: int = 2023) -> list[Record]:
    """All records, group by group in the order of ``GROUP_SIZES``. The shapes of a group alternate."""
    dice = Dice(seed)
    surnames = iter(dice.shuffled([start + end for start in SURNAME_STARTS for end in SURNAME_ENDS]))
    seen: set[str] = set()
    records = []
    for group, size in GROUP_SIZES.items():
        shapes = KEEP_SHAPES if group == "keep" else PRIVATE_SHAPES
        kinds = list(shapes)
        for index in range(size):
            kind = kinds[index % len(kinds)]
            text = write_record(*shapes[kind], person(next(surnames), dice), dice, seen, RUN_WORDS[group])
            records.append(Record(f"{group}-{index:03d}", group, kind, text))
    return records


def person(surname: str, dice: Dice) -> dict[str, str]:
    """The fixed facts of an invented person, by slot name."""
    is_she = dice.below(2) == 0
    first = dice.pick(GIVEN_SHE if is_she else GIVEN_HE)
    he, his, him = ("she", "her", "her") if is_she else ("he", "his", "him")
    facts = {
        "first": first,
        "last": surname,
        "SURNAME": surname,
        "he": he,
        "He": he.capitalize(),
        "his": his,
        "him": him,
    }
    facts |= {"home": dice.pick(STREETS), "city": dice.pick(TOWNS), "number": str(2 + dice.below(140))}
    facts |= {"first2": dice.pick(GIVEN_SHE + GIVEN_HE), "relative": dice.pick(GIVEN_SHE + GIVEN_HE)}
    facts |= {
        "job": dice.pick(WORDS["job"]),
        "month_of_birth": dice.pick(WORDS["month"]),
        "day": str(4 + dice.below(17)),
    }
    neighbour = dice.pick(GIVEN_SHE + GIVEN_HE) + " " + dice.pick(SURNAME_STARTS) + dice.pick(SURNAME_ENDS)
    facts |= {"neighbour": neighbour, "doctor": dice.pick(SURNAME_STARTS) + dice.pick(SURNAME_ENDS)}
    age = 19 + dice.below(70)
    facts |= {"age": str(age), "birth_year": str(2021 - age), "year": str(1985 + dice.below(36))}
    facts |= {"mail": f"{first.lower()}.{surname.lower()}@{dice.pick(WORDS['domain'])}", "Town": dice.pick(TOWNS)}
    numbers = {
        "phone": "555-01{##}",
        "post": "{letter}{letter}{#} {##}",
        "account": "{####}-{####}",
        "sort": "{##}-{##}",
    }
    numbers |= {"policy": "{letter}{letter}-{#####}", "amount": "{2-9} {100-990}"}
    return facts | {slot: expand(template, dice, {}, WORDS) for slot, template in numbers.items()}


def write_record(
    openings: Sequence[str],
    sentences: Sequence[str],
    facts: Mapping[str, str],
    dice: Dice,
    seen: set[str],
    run_words: int,
) -> str:
    """One opening and shuffled sentences, at least ``MIN_CHARACTERS`` long, without a run of ``run_words`` in ``seen``.

    A sentence that would repeat a run of another record is drawn again, and skipped after ``_TRIES`` draws. The
    record's runs are added to ``seen``, in place. ValueError when the pool is too small for the length.
    """
    text = ""
    for sentence in [dice.pick(openings), *dice.shuffled(sentences)]:
        for _ in range(_TRIES):
            candidate = f"{text} {expand(sentence, dice, facts, WORDS)}".strip()
            if seen.isdisjoint(word_runs(candidate, run_words)):
                text = candidate
                break
        if len(text) >= MIN_CHARACTERS:
            for length in set(RUN_WORDS.values()):
                seen.update(word_runs(text, length))
            return text
    raise ValueError(f"{len(sentences)} sentences gave a record of {len(text)} characters; {MIN_CHARACTERS} are needed")


def word_runs(text: str, length: int) -> set[str]:
    """Every run of ``length`` consecutive words."""
    words = text.split()
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}
