"""The estimate of what is private in a passage, against the lab's generator, which knows what it filled in."""

from __future__ import annotations

import re

import numpy as np
import pytest

from data import phrases, records
from data.lab import lab_passages
from data.lab_keep import KEEP_SHAPES
from data.lab_private import PRIVATE_SHAPES
from data.lab_words import SURNAME_ENDS, SURNAME_STARTS, WORDS
from data.private_words import mark_private
from data.secrets import private_masks, with_secrets
from data.types import Passage
from models.lab.load import load_tokenizer
from tests.fakes import Letters

TEMPLATE, CHOICE, PRIVATE = 0, 1, 2
MARKS = {"\x01": (PRIVATE, 1), "\x02": (PRIVATE, -1), "\x03": (CHOICE, 1), "\x04": (CHOICE, -1)}
STRIP = re.compile("[\x01-\x04]")
ARTICLE = re.compile("\\b([Aa]) (?=[\x01-\x04]*[AEIOUaeiou][\x01-\x04]*[a-z])")


def expand_marked(template, dice, facts):
    """phrases.expand with marks around what a slot (1, 2) and a choice (3, 4) was filled with."""
    while match := phrases._INNERMOST_CHOICE.search(template):
        chosen = dice.pick(match.group(1).split("|"))
        template = f"{template[: match.start()]}\x03{chosen}\x04{template[match.end() :]}"
    while match := phrases._SLOT.search(template):
        value = phrases.fill(match.group(1), dice, facts, WORDS)
        template = f"{template[: match.start()]}\x01{value}\x02{template[match.end() :]}"
    return ARTICLE.sub(r"\1n ", template)


def write_marked(openings, sentences, facts, dice, seen, run_words):
    """records.write_record with marks."""
    text = ""
    for sentence in [dice.pick(openings), *dice.shuffled(sentences)]:
        for _ in range(records._TRIES):
            candidate = f"{text} {expand_marked(sentence, dice, facts)}".strip()
            if seen.isdisjoint(records.word_runs(STRIP.sub("", candidate), run_words)):
                text = candidate
                break
        if len(STRIP.sub("", text)) >= records.MIN_CHARACTERS:
            break
    for length in set(records.RUN_WORDS.values()):
        seen.update(records.word_runs(STRIP.sub("", text), length))
    return text


def marked_records() -> dict[str, str]:
    dice, seen, found = phrases.Dice(2023), set(), {}
    surnames = iter(dice.shuffled([start + end for start in SURNAME_STARTS for end in SURNAME_ENDS]))
    for group, size in records.GROUP_SIZES.items():
        shapes = KEEP_SHAPES if group == "keep" else PRIVATE_SHAPES
        for index in range(size):
            shape = shapes[list(shapes)[index % len(shapes)]]
            facts = records.person(next(surnames), dice)
            found[f"{group}-{index:03d}"] = write_marked(*shape, facts, dice, seen, records.RUN_WORDS[group])
    return found


def character_classes(marked: str) -> list[int]:
    """The class of every character of a record: what it was filled with, the innermost mark first."""
    depth, found = {PRIVATE: 0, CHOICE: 0}, []
    for character in marked:
        if character in MARKS:
            kind, step = MARKS[character]
            depth[kind] += step
        else:
            found.append(PRIVATE if depth[PRIVATE] else CHOICE if depth[CHOICE] else TEMPLATE)
    return found


def token_classes(text: str, marked: str, tokenizer) -> np.ndarray:
    classes, found = character_classes(marked), []
    for start, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]:
        while start < end - 1 and text[start] == " ":
            start += 1
        found.append(max(classes[start:end]))
    return np.array(found[:150])


def test_the_estimate_on_the_lab_against_its_generator():
    tokenizer = load_tokenizer()
    passages = [p for p in lab_passages(tokenizer) if p.group != "keep"]
    texts, marked = {r.id: r.text for r in records.lab_records()}, marked_records()
    assert {name: STRIP.sub("", text) for name, text in marked.items()} == texts
    truth = np.concatenate([token_classes(texts[p.id], marked[p.id], tokenizer)[100:] for p in passages])
    whole = lab_passages(tokenizer)
    masks = zip(whole, private_masks(whole, tokenizer.decode), strict=True)
    found = np.concatenate([mask for p, mask in masks if p.group != "keep"])
    is_private = truth == PRIVATE
    recall = (found & is_private).sum() / is_private.sum()
    precision, chosen = ((found & is_one).sum() / found.sum() for is_one in (is_private, truth == CHOICE))
    print(f"precision {precision:.3f}, of a choice {chosen:.3f}, recall {recall:.3f}, private {is_private.mean():.3f}")
    assert precision == pytest.approx(0.716, abs=0.01)  # data/private_words.py says these
    assert chosen == pytest.approx(0.10, abs=0.01)
    assert recall == pytest.approx(0.774, abs=0.01)


def private(texts, others=()):
    return [[word.text for word in words if word.is_private] for words in mark_private(texts, others)]


def test_names_and_numbers_are_private_and_the_words_of_the_form_are_not():
    texts = [("", "call Ann at 5512-A, please"), ("", "call Bob at 7704-B, please"), ("", "call Eve at 3391-C, please")]
    assert private(texts) == [["Ann", "5512-A"], ["Bob", "7704-B"], ["Eve", "3391-C"]]
    assert private(texts[:1]) == [["call", "Ann", "at", "5512-A", ",", "please"]]  # alone, all of it is its own
    assert private(texts[:1], texts) == [["Ann", "5512-A"]]
    assert private([*texts[:1], *texts[:1]], texts[1:]) == [["Ann", "5512-A"]] * 2  # a text that stands there twice


def test_a_value_that_others_share_is_private_where_the_blank_is_filled_in_many_ways():
    values = ["gout", "asthma", "gout", "migraine", "eczema", "hay fever"]
    texts = [("Patient", f"was diagnosed with {value} in {1990 + i}, says {i}") for i, value in enumerate(values)]
    found = private(texts)
    assert "gout" in found[0]
    assert "gout" in found[2]
    assert not {"was", "diagnosed", "with", "in"} & {word for words in found for word in words}


def test_words_are_taken_apart_in_scripts_without_spaces_and_kept_whole_with_marks():
    (words,) = mark_private([("", "名前は田中。 Zoë's naïve 12-B/7, a@b.org")])
    assert [w.text for w in words] == [*"名前は田中", "。", "Zoë's", "naïve", "12-B/7", ",", "a@b.org"]
    assert [w.is_sign for w in words] == [False] * 5 + [True, False, False, False, True, False]
    assert "名前は田中。 Zoë's"[words[6].start : words[6].end] == "Zoë's"
    assert mark_private([("", "")]) == [[]]
    assert mark_private([]) == []


def test_masks_are_about_tokens():
    tokenizer = Letters()
    rows = ["abcd", "abce", "abxy"]
    passages = [Passage(row, (), (2,), tuple(tokenizer(row)["input_ids"])) for row in rows]
    assert [mask.tolist() for mask in private_masks(passages, tokenizer.decode)] == [[True] * 4] * 3
    named, _ = with_secrets([Passage("a", (), (2,), passages[0].suffix, secrets=("bc",))], tokenizer.decode, None)
    (mask,) = private_masks(named, tokenizer.decode)
    assert mask.dtype == bool
    assert mask.all()  # alone, the whole word is its own, and the secret is within it
