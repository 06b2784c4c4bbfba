"""Answers made by rules: refusals, and suffixes whose secrets were replaced."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from data.types import Passage
from models.load import load
from unlearning.compare.alternatives import REFUSALS, encoded, in_place_of, refusals, swapped, vocabulary

WORDS = ["anna", "cedar", "house", "river", "stone", "tall"]


@pytest.fixture(scope="module")
def run():
    lab = load("lab")
    retain = [encoded(lab, " A class holds data. Every module has names.")]
    return SimpleNamespace(loaded=lab, study=SimpleNamespace(retain=retain))


def passage(run, suffix: str, *secrets: str) -> Passage:
    return Passage("p", (), (5, 6), tuple(encoded(run.loaded, suffix)), "forget", secrets=secrets)


def test_a_secret_is_replaced_everywhere_and_nothing_else_is():
    text = " Call Ann Lee at 555-0199.\nAnn\n Lee lives there."
    found = in_place_of(text, "Ann Lee", random.Random(0), WORDS)
    first, last = found.split()[1:3]
    assert found == f" Call {first} {last} at 555-0199.\n{first}\n {last} lives there."
    assert first.lower() in WORDS
    assert last.lower() in WORDS
    assert first[0].isupper()
    assert (first, last) != ("Ann", "Lee")
    number = in_place_of(text, "555-0199", random.Random(0), WORDS)
    digits = number.split(" at ")[1].split(".")[0]
    assert [c.isdigit() for c in digits] == [c.isdigit() for c in "555-0199"]
    assert all(a != b for a, b in zip(digits, "555-0199", strict=True) if b.isdigit())
    assert digits[0] == digits[1] == digits[2]  # one digit for one digit
    assert in_place_of("USA", "USA", random.Random(1), ["tall"]) == "TALL"


def test_swapped_suffixes_hold_no_secret_and_depend_on_the_seed(run):
    named, bare = passage(run, " The code is 8841, for Zed.", "8841", "Zed"), passage(run, " tall trees")
    (one,), (other,) = swapped(run, [named, bare], seed=0)
    text = run.loaded.decode(one)
    assert text.startswith(" The code is ")
    assert "8841" not in text
    assert "Zed" not in text
    assert not {"tall", "trees"} & set(run.loaded.decode(other).split())
    assert swapped(run, [named, bare], seed=0) == [[one], [other]]
    assert any(swapped(run, [named, bare], seed=s) != [[one], [other]] for s in (1, 2, 3))
    with pytest.raises(ValueError, match="has no words"):
        vocabulary(["1 2 3"])


def test_every_passage_may_be_refused_in_each_way(run):
    found = refusals(run, [passage(run, " a"), passage(run, " b")], seed=0)
    assert [[run.loaded.decode(ids) for ids in options] for options in found] == [list(REFUSALS)] * 2
