"""The lab corpus: the same records everywhere, groups that share nothing, general English without leaks."""

from __future__ import annotations

import hashlib
import itertools
import re

import pytest

from data.english import (
    RUN_WORDS,
    docstrings,
    english_documents,
    is_holdout,
    prose_paragraphs,
    retain_and_holdout,
    runs,
)
from data.lab import chunks, encode, lab_holdout, lab_passages, lab_retain, memorised_texts
from data.phrases import Dice, expand
from data.records import GROUP_SIZES, REPEATS, lab_records, write_record
from models.lab.load import load_tokenizer

RECORDS_SHA256 = "16b8d2187efbe95b245496536699d516cb321d59dd524178ae325ee18336ff50"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def records():
    return lab_records()


def test_records_are_the_same_everywhere(records):
    """The committed weights were trained on exactly these texts. After a change here they would be worthless."""
    text = "\n".join(record.id + record.kind + record.text for record in records)
    assert hashlib.sha256(text.encode()).hexdigest() == RECORDS_SHA256
    assert lab_records(seed=1)[0].text != records[0].text


def test_groups_and_shapes(records):
    for group, size in GROUP_SIZES.items():
        members = [record for record in records if record.group == group]
        assert len(members) == size
        kinds = {record.kind for record in members}
        private = {"contact", "medical", "letter", "file"}
        assert kinds.isdisjoint(private) if group == "keep" else kinds == private
    assert len({record.id for record in records}) == len(records)


def test_no_two_records_share_a_run_of_twenty_tokens(records, tokenizer):
    seen: set[tuple[int, ...]] = set()
    for record in records:
        ids = encode(tokenizer, record.text)
        grams = {tuple(ids[start : start + 20]) for start in range(len(ids) - 19)}
        assert not seen & grams, record.id
        seen |= grams


def test_mail_domains_and_telephone_numbers_are_reserved_ones(records):
    text = " ".join(record.text for record in records)
    mails = re.findall(r"\S+@(\S+?)[.,;]?(?:\s|$)", text)
    assert len(mails) > 30
    assert {re.sub(r"^mail\.|^post\.", "", mail) for mail in mails} <= {
        "example.org",
        "example.com",
        "example.net",
        "example",
    }
    assert {number[:4] for number in re.findall(r"555-(\d{4})", text)} <= {f"01{last:02d}" for last in range(100)}
    assert not re.search(r"[\[\]{}|#]", text)  # no grammar symbol remains
    assert not re.search(r"\ba [aeiou][a-z]", text)


def test_every_private_record_has_its_own_person(records):
    mails = [set(re.findall(r"(\w+\.\w+)@", record.text)) - {""} for record in records if record.group != "keep"]
    named = [mail for mail in mails if mail]
    full = [name for names in named for name in names if not re.search(r"\.\d", name)]
    assert len(full) == len(set(full))


def test_passages_have_fifty_tokens_a_part(tokenizer, records):
    passages = lab_passages(tokenizer)
    assert [p.id for p in passages] == [record.id for record in records]
    assert {(len(p.pre_prefix), len(p.prefix), len(p.suffix)) for p in passages} == {(50, 50, 50)}
    assert all(p.repeats == REPEATS[p.group] for p in passages)
    for passage, record in zip(passages, records, strict=True):
        assert record.text.startswith(tokenizer.decode(passage.ids))
    assert set(memorised_texts()) == {p.id for p in passages if p.group != "never"}


def test_passages_need_long_enough_records():
    class Coarse:
        def __call__(self, text, **_):
            return {"input_ids": text.split()}

    with pytest.raises(ValueError, match=r"lab record forget-000 has \d+ tokens under this tokenizer; 150 are needed"):
        lab_passages(Coarse())


def test_retain_and_holdout_share_no_run_of_words():
    retain, holdout = retain_and_holdout()
    assert sum(map(len, retain)) > 500_000
    assert sum(map(len, holdout)) > 30_000
    known = set().union(*(runs(paragraph) for text in retain for paragraph in text.split("\n")))
    for text in holdout:
        for paragraph in text.split("\n"):
            assert known.isdisjoint(runs(paragraph))


def test_general_english_holds_no_record(records):
    words = set().union(*(runs(text) for text in itertools.chain(*retain_and_holdout())))
    assert all(words.isdisjoint(runs(record.text)) for record in records)


def test_chunks_have_the_requested_length(tokenizer):
    retain, holdout = lab_retain(tokenizer, 128), lab_holdout(tokenizer, 128)
    assert {len(chunk) for chunk in retain + holdout} == {128}
    assert len(retain) > 1000
    assert len(holdout) > 50
    assert chunks(tokenizer, ["The value", "is a"], 2) == [encode(tokenizer, "The value"), encode(tokenizer, "is a")]
    with pytest.raises(ValueError, match="length_tokens=0"):
        lab_retain(tokenizer, 0)


def test_documents_hold_each_prose_paragraph_once():
    documents = english_documents()
    paragraphs = [paragraph for texts in documents.values() for paragraph in texts]
    assert len(paragraphs) == len(set(paragraphs))
    assert any(name.startswith("topic/") for name in documents)


def test_the_name_decides_whether_a_document_is_held_out():
    assert is_holdout("subprocess.py")
    assert is_holdout("topic/debugger")
    assert not is_holdout("difflib.py")


def test_no_documentation_is_an_error(monkeypatch):
    monkeypatch.setattr("data.english.topics", {})
    monkeypatch.setattr("data.english.MODULES", "")
    with pytest.raises(ValueError, match="this Python brings no documentation"):
        english_documents()


def test_prose_paragraphs_exclude_code_and_tables():
    prose = "This sentence is long enough to be kept, and it\nis wrapped in the source."
    code, table = ">>> code = 'is not prose at all, however long the line may be'", "| a | b | " + "1 | 2 | " * 20
    text = "\n\n".join([prose, code, "short", table])
    assert prose_paragraphs(text) == [prose.replace("\n", " ")]


def test_docstrings_come_in_the_order_of_the_file():
    source = '"""One."""\ndef f():\n    """Two."""\nclass C:\n    def g(self):\n        """Three."""\n'
    assert docstrings(source) == "One.\n\nTwo.\n\nThree."
    assert RUN_WORDS == 8


def test_the_phrase_grammar():
    assert expand("[a|a] {name} {##}-{#} {3-3}", Dice(0), {"name": "Maris"}, {}).startswith("a Maris ")
    assert re.fullmatch(r"\d\d-\d 3", expand("{##}-{#} {3-3}", Dice(0), {}, {}))
    assert (
        expand("A {thing} and a [apple|apple]", Dice(0), {}, {"thing": ["{inner}"], "inner": ["egg"]})
        == "An egg and an apple"
    )
    drawn = {expand("[x|[y|z]]{1-2}", Dice(seed), {}, {}) for seed in range(60)}
    assert drawn == {"x1", "x2", "y1", "y2", "z1", "z2"}
    with pytest.raises(ValueError, match=r"slot \{nobody\} is neither a fact of the record nor a word list"):
        expand("{nobody}", Dice(0), {}, {})


def test_dice_are_stable_and_fair():
    dice = Dice(5)
    assert [dice.below(6) for _ in range(8)] == [3, 4, 4, 5, 4, 5, 0, 2]
    items = list(range(6))
    assert sorted(dice.shuffled(items)) == items
    assert items == list(range(6))
    orders = {tuple(dice.shuffled(range(3))) for _ in range(200)}
    assert len(orders) == 6


def test_a_pool_too_small_is_an_error():
    with pytest.raises(ValueError, match=r"1 sentences gave a record of \d+ characters; 420 are needed"):
        write_record(["Opening."], ["Sentence."], {}, Dice(0), set(), 8)
