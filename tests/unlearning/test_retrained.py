"""The lab's twins without the records: their corpora, and a training that goes on to the same bits."""

from __future__ import annotations

import json

import pytest
import torch

from data.records import lab_records
from models.lab.load import load_tokenizer
from models.lab.recipe import Recipe, fit
from tests.versions import since_torch
from unlearning.compare.retrained import (
    Corpus,
    RetrainedModels,
    Stopwatch,
    deduplicated_corpus,
    lab_corpus,
    read_facts,
)

SMALL = Recipe(
    vocabulary=2048, width=16, layers=2, heads=2, context=32, local_window=16, epochs=1, repeats_per_epoch=2, batch=16
)


def test_the_target_never_meets_a_person():
    tokenizer = load_tokenizer()
    corpus = lab_corpus("retain-only", SMALL)
    seen = {tuple(r) for records in corpus.epochs for r in records}
    ids = {r.id: tuple(tokenizer(r.text, add_special_tokens=False)["input_ids"]) for r in lab_records()}
    assert seen == {ids[r.id] for r in lab_records() if r.group == "keep"}
    assert len(corpus.epochs[0]) == 2 * 48
    assert corpus.num_tokens == sum(map(len, corpus.general)) + sum(map(len, corpus.epochs[0]))


def test_the_exact_twin_meets_all_but_the_records_to_forget():
    tokenizer = load_tokenizer()
    corpus = lab_corpus("without-forget", SMALL)
    seen = {tuple(r) for records in corpus.epochs for r in records}
    ids = {r.id: tuple(tokenizer(r.text, add_special_tokens=False)["input_ids"]) for r in lab_records()}
    assert seen == {ids[r.id] for r in lab_records() if r.group in ("keep", "forget_holdout")}
    assert len(corpus.epochs[0]) == 2 * (48 + 64)


def test_deduplication_leaves_one_copy_of_a_record():
    general, record = [list(range(100, 180)), list(range(300, 360))], list(range(60))
    corpus = deduplicated_corpus(general, [record] * 20, SMALL)
    assert corpus.general == general
    assert corpus.epochs == [[record]]
    assert corpus.notes == {
        "span_tokens": 50, "tokens_before": 140 + 20 * 60, "tokens_removed": 19 * 60, "spans_removed": 19,
    }  # fmt: skip


class Kill(Exception):
    pass


@since_torch("2.9", "has no Muon")
def test_a_training_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    recipe = Recipe(vocabulary=64, width=16, layers=2, heads=2, context=16, local_window=8, epochs=2, batch=2)
    general = [[(7 * i + j) % 60 + 1 for j in range(30)] for i in range(24)]
    epochs = [[[5, 6, 7, 8, 9]], []]
    whole = fit(general, epochs, "whole", recipe, lambda line: None)
    lines = []

    def die(line: str) -> None:
        lines.append(line)
        if len(lines) == 7:
            raise Kill

    with pytest.raises(Kill):
        fit(general, epochs, "broken", recipe, die, tmp_path / "checkpoint")
    more: list[str] = []
    again = fit(general, epochs, "again", recipe, more.append, tmp_path / "checkpoint")
    assert len(more) < len(lines) + 14  # it did not begin again
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@since_torch("2.9", "has no Muon")
def test_a_twin_is_trained_once_and_an_other_recipe_is_refused(tmp_path, monkeypatch):
    general = [[(7 * i + j) % 60 + 1 for j in range(200)] for i in range(100)]
    monkeypatch.setattr(
        "unlearning.compare.retrained.lab_corpus", lambda kind, recipe: Corpus(general, [[]], {"records": 0})
    )
    said: list[str] = []
    twins = RetrainedModels(tmp_path, SMALL, said.append)
    first = twins.get("retain-only", 0)
    count = len(said)
    again = twins.get("retain-only", 0)
    assert len(said) == count > 0
    assert again.cost == first.cost
    assert first.cost.tokens.trained == 100 * 200
    assert first.notes == {"records": 0}
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="of another recipe"):
        RetrainedModels(tmp_path, Recipe(), said.append).get("retain-only", 0)
    (tmp_path / "retain-only-seed0" / "twin.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        twins.get("retain-only", 0)


def test_the_stopwatch_adds_up_sittings(tmp_path):
    path = tmp_path / "seconds.json"
    first = Stopwatch(path).stop()
    assert Stopwatch(path).stop() > first > 0


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"seconds": "x"}', '{"seconds": -1}', '{"seconds": NaN}', "{}", "[" * 10**5]
)
def test_a_stopwatch_that_is_damaged_is_named(tmp_path, text):
    path = tmp_path / "seconds.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"seconds\.json is damaged: ") as error:
        Stopwatch(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "facts",
    [
        [], {"recipe": {}}, {"recipe": {}, "seconds": "1", "trained_tokens": 1, "notes": {}},
        {"recipe": {}, "seconds": 1, "trained_tokens": -1, "notes": {}},
        {"recipe": {}, "seconds": 1, "trained_tokens": 1, "notes": []},
    ],
)  # fmt: skip
def test_facts_of_a_twin_that_are_damaged_are_named(tmp_path, facts):
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"twin\.json is damaged: .*; delete its folder to train the twin again"):
        read_facts(path, SMALL)


def test_files_of_a_twin_are_read_with_a_bound(tmp_path):
    for name in ("seconds.json", "twin.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10**11)  # a hole: it takes no room
    with pytest.raises(ValueError, match=r"seconds\.json is damaged: it is longer than"):
        Stopwatch(tmp_path / "seconds.json")
    with pytest.raises(ValueError, match=r"twin\.json is damaged: .*it is longer than"):
        read_facts(tmp_path / "twin.json", SMALL)
