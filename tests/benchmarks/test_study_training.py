"""The lab study's trainings: what a variant switches, the graded lab, and a point from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import demem
from benchmarks.study import train as study_train
from benchmarks.study.graded import graded_corpus, graded_model, with_repeats
from benchmarks.study.points import (
    ORIGINAL,
    QUICK,
    Point,
    is_current,
)
from benchmarks.study.train import Workshop, make_point, shrunk
from benchmarks.study.variants import REFERENCES, REWARDS, AboveFloor, Setting
from data.records import REPEATS, lab_records
from data.study import Study
from data.types import Passage
from eval.evaluate import Evaluation
from models.lab.recipe import Recipe
from models.load import load
from ppo.log import read_jsonl
from ppo.types import Generation, Sample
from tests.versions import since_torch

SMALL = Recipe(width=16, layers=2, heads=2, context=32, local_window=16, epochs=1, repeats_per_epoch=4, batch=16)
# ---------------------------------------------------------------------- what is switched


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A quick run of the lab with one forget record in sight."""
    workshop = Workshop(QUICK, tmp_path_factory.mktemp("work"))
    run = workshop.prepare(Point("base"))
    return Setting(run, 5.0, run.loaded.model.requires_grad_(False))


def samples_of(setting: Setting, responses: list[list[int]]) -> list[Sample]:
    p, decode = setting.run.study.group("forget")[0], setting.run.loaded.decode
    row = {"suffix": decode(p.suffix), "suffix_ids": list(p.suffix)}
    return [Sample("", decode(ids), list(p.prefix), ids, row, False) for ids in responses]


def test_rewards_differ_in_what_they_say_they_do(setting):
    forget = setting.run.study.group("forget")
    truth, other = list(forget[0].suffix), list(forget[1].suffix)
    loop = [truth[0], truth[1]] * 25
    samples = samples_of(setting, [truth, other, loop])
    found = {name: make(setting)(samples) for name, make in REWARDS.items()}
    total = {n: [sum(v) if isinstance(v, list) else v for v in values] for n, values in found.items()}
    for name, values in total.items():
        assert values[0] < values[1], name  # to recite pays less than to write something else
    assert isinstance(found["default"][0], list)
    assert isinstance(found["sparse"][0], float)
    assert total["sparse"][0] == pytest.approx(total["default"][0])  # the same, spread over tokens
    assert total["default"][2] == min(total["default"])  # a loop gets the worst score
    assert total["unguarded"][2] > total["default"][2]
    assert total["without-repetition"][2] == pytest.approx(-0.95)  # guarded; the worst BLEU above a floor of 5
    assert total["without-floor"][0] == pytest.approx(-1.0)
    assert total["default"][0] == pytest.approx(-0.95)
    assert total["semantic"][0] == pytest.approx(-1.0, abs=1e-4)
    assert -0.9 < total["semantic"][1] <= 0
    assert total["semantic"][2] == min(total["semantic"])


def test_only_what_lies_above_the_floor_counts():
    measure = AboveFloor(lambda samples: [0.2, 0.6, 1.0], 0.6)
    assert measure([]) == pytest.approx([0.0, 0.0, 1.0])
    assert AboveFloor(lambda samples: [0.8], 0.6)([]) == pytest.approx([0.5])


def test_the_counterfactual_reference_forbids_the_true_token(setting):
    truth = list(setting.run.study.group("forget")[0].suffix)
    other = [(truth[0] + 1) % 2048, *truth[1:]]
    samples = samples_of(setting, [truth, other])
    prompt, ones = torch.tensor([list(s.prompt_ids) for s in samples]), torch.ones(2, len(truth))
    generation = Generation(
        prompt_ids=prompt, prompt_mask=torch.ones_like(prompt, dtype=torch.bool), tokens=torch.tensor([truth, other]),
        mask=ones.bool(), logprobs=-ones, entropy=ones, is_ended=torch.zeros(2, dtype=torch.bool), values=None,
    )  # fmt: skip
    found = REFERENCES["counterfactual"](setting).logprobs(generation, samples)
    assert torch.all(found[0] == -20.0)  # each true token follows the true ones
    assert -20.0 < found[1, 0] < 0.0
    assert torch.all(found[1, 1:] > -20.0)  # off the path nothing is forbidden


def test_a_quick_run_has_a_share_of_every_group(setting):
    study = setting.run.study
    assert {g: len(study.group(g)) for g in ("forget", "forget_holdout", "keep", "keep_shown", "never")} == {
        "forget": 4, "forget_holdout": 4, "keep": 1, "keep_shown": 1, "never": 4,
    }  # fmt: skip
    groups = ["forget"] * 4 + ["keep"] * 2
    full = Study([Passage(str(i), (), (1,), (2,), g) for i, g in enumerate(groups)], [], [[1], [2], [3], [4]])
    half = shrunk(full, 2)
    assert [p.id for p in half.passages] == ["0", "1", "4"]
    assert half.holdout == [[1], [2]]


# ---------------------------------------------------------------------- repetition


def test_every_level_of_repetition_has_every_shape_alike():
    records = lab_records()
    passages = with_repeats([Passage(r.id, (), (1,), (2,), r.group, r.kind) for r in records], Recipe())
    for group in ("forget", "forget_holdout"):
        mine = [(p.kind, p.repeats) for p in passages if p.group == group]
        assert {repeats for _, repeats in mine} == {10, 25, 50, 100}
        assert {mine.count(pair) for pair in set(mine)} == {4}
        assert len(set(mine)) == 16
    assert {p.repeats for p in passages if p.group == "keep"} == {100}
    assert {p.repeats for p in passages if p.group == "never"} == {0}


def test_the_graded_corpus_holds_a_record_as_often_as_it_says():
    records = lab_records()
    recipe = Recipe(epochs=3)
    corpus = graded_corpus(["A general text about nothing. " * 20], records, recipe)
    tokens = {tuple(ids) for ids in corpus.epochs[0]}
    assert len(tokens) == sum(REPEATS[r.group] > 0 for r in records)
    counts = [corpus.epochs[0].count(list(ids)) for ids in tokens]
    assert {n: counts.count(n) for n in (2, 5, 10, 20)} == {2: 32, 5: 32, 10: 32, 20: 32 + 48}
    assert len(corpus.epochs) == 3


@since_torch("2.9", "has no Muon")
def test_the_graded_lab_is_trained_once(tmp_path):
    said: list[str] = []
    folder = graded_model(tmp_path / "graded", SMALL, said.append, most_documents=1)
    count = len(said)
    assert graded_model(tmp_path / "graded", SMALL, said.append, most_documents=1) == folder
    assert len(said) == count > 0
    assert load(folder).model.config.hidden_size == 16
    with pytest.raises(ValueError, match="of another recipe"):
        graded_model(tmp_path / "graded", Recipe(), said.append)


@pytest.mark.parametrize(("name", "expected"), [("distil", 2), ("warm", 2), ("warm-half", 2), ("distil-long", 201)])
def test_a_distillation_ends_early_but_where_it_is_to_go_on(name, expected, tmp_path, monkeypatch):
    """A setting of PPO's looks (``warm`` has none) does not change the distillation before it."""
    seen = []

    def distilled(run, kept, before, most, looks):
        seen.append(looks)
        raise KeyboardInterrupt

    monkeypatch.setattr(study_train, "distilled", distilled)
    monkeypatch.setattr(study_train, "text_to_keep", lambda run: [])
    workshop = Workshop(QUICK, tmp_path)
    run = workshop.prepare(Point(name))
    with pytest.raises(KeyboardInterrupt):
        study_train.trained(Point(name), workshop, run, run.loaded.model, {})
    assert seen == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "kl-counterfactual", "semantic", "warm", "distil", "distil-long"])
def test_a_point_from_end_to_end(name, tmp_path):
    workshop = Workshop(QUICK, tmp_path / "work")
    before = make_point(Point(ORIGINAL), workshop, {})["summary"]
    result = make_point(Point(name), workshop, before)
    text = json.dumps(result)
    assert result["error"] is None
    assert is_current(json.loads(text), QUICK)
    assert result["steps"] == {
        "distil": {"distillation": 2}, "distil-long": {"distillation": 2},
        "warm": {"distillation": 2, "ppo": 2, "is_stopped": False},
    }.get(name, {"ppo": 2, "is_stopped": False})  # fmt: skip
    count = sum(p["passages"] for p in result["parts"]["kind"].values())
    assert count == 14  # 4 of each of three groups, and 1 of each half of keep
    assert not list((tmp_path / "work").iterdir())
    decode = load("lab").decode
    for passage in workshop.prepare(Point(name)).study.passages:  # no text of a passage is kept
        assert decode(passage.suffix[:12]) not in text


@pytest.mark.slow
def test_the_default_variant_is_demem_s_own_run(tmp_path, monkeypatch):
    """demem.py's trainer and the study's give the same numbers, digit for digit."""
    monkeypatch.setattr(study_train, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))  # the folder stays
    workshop = Workshop(QUICK, tmp_path / "work")
    before = make_point(Point(ORIGINAL), workshop, {})["summary"]
    make_point(Point("base"), workshop, before)
    run = workshop.prepare(Point("base"))
    run = replace(run, options=replace(run.options, out=str(tmp_path / "own")))
    (tmp_path / "own").mkdir()
    demem.train(run, Evaluation(before, {}, {}, {}, {}))
    ours, theirs = (
        [
            {k: v for k, v in row.items() if not k.startswith(("time/", "generate/"))}
            for row in read_jsonl(f / "metrics.jsonl")
        ]
        for f in (tmp_path / "work" / "base-n64-seed0", tmp_path / "own")
    )
    assert len(ours) == 2
    assert ours == theirs
