"""The lab study from outside: its points, what switches what, going on, and what its pages say, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import demem
import ppo
from benchmarks.study import run as study
from benchmarks.study import train as study_train
from benchmarks.study.graded import graded_corpus, graded_model, with_repeats
from benchmarks.study.points import (
    ORIGINAL,
    QUICK,
    SIZE,
    SIZES,
    Point,
    Settings,
    asked,
    changes_of,
    is_current,
    minutes,
    missing,
    options_of,
    plan,
)
from benchmarks.study.rows import effort
from benchmarks.study.train import Workshop, make_point, parted, shrunk
from benchmarks.study.variants import BOTH, REFERENCES, REWARDS, VARIANTS, AboveFloor, Setting
from data.records import REPEATS, lab_records
from data.study import Study
from data.types import Passage
from eval.evaluate import Evaluation
from eval.points import pack, stored_points
from models.lab.recipe import Recipe
from models.load import load
from ppo.log import read_jsonl
from ppo.types import Generation, Sample
from tests.eval.test_pareto import GOOD
from tests.eval.test_pareto import ORIGINAL as UNTOUCHED
from unlearning.options import PRESETS, Options

SMALL = Recipe(width=16, layers=2, heads=2, context=32, local_window=16, epochs=1, repeats_per_epoch=4, batch=16)


# ---------------------------------------------------------------------- made-up points


CONFIG = {"prompts_per_step": 64, "samples_per_prompt": 1, "minibatch": 32, "epochs": 2}


def made_up(variant: str, seed: int = 0, size: int = SIZE, lab: str = "lab", error: str | None = None, **changes):
    """What a point's file holds; ``keep__exact`` stands for "keep/exact"."""
    base = UNTOUCHED if variant == ORIGINAL else GOOD
    summary = {**base, "forget_holdout/passages": 128.0 - size, **{k.replace("__", "/"): v for k, v in changes.items()}}
    point = Point(variant, size, seed, lab)  # type: ignore[arg-type]
    exact = summary["forget_holdout/exact"]
    parts = {
        "kind": {"forget/letter": {"passages": 16, "exact": 0.0},
                 "forget_holdout/letter": {"passages": 16, "exact": exact},
                 "keep/rhyme": {"passages": 8, "exact": 1.0}},
        "repeats": {"forget/100": {"passages": 16, "exact": 0.25}, "forget/25": {"passages": 16, "exact": 0.5}},
    }  # fmt: skip
    return {
        "key": point.key, "asked": asked(point, Settings()), "config": CONFIG, "steps": {"ppo": 40}, "error": error,
        "seconds": {"training": 240.0, "evaluation": 60.0}, "summary": {} if error else summary,
        "parts": {} if error else parts, "meta": {"commit": "abc", "threads": 1},
    }  # fmt: skip


def three(variant: str, name: str, values: list[float]) -> list[dict]:
    return [made_up(variant, seed, **{name: value}) for seed, value in enumerate(values)]


# ---------------------------------------------------------------------- the points


def test_every_part_has_its_points_once_and_originals_first():
    points = plan(("ingredients", "size", "repeats", "shapes"), seeds=3)
    assert len({p.key for p in points}) == len(points)
    for point in points:
        assert points.index(point.original) <= points.index(point)
    assert len(plan(["ingredients"], seeds=3)) == 1 + 3 * len(VARIANTS)
    assert len(plan(["size"], seeds=3)) == len(SIZES) * (1 + 3 * len(BOTH))
    assert {p.lab for p in plan(["repeats"], seeds=1)} == {"graded"}
    assert plan(["shapes"], seeds=3) == []
    shared = set(plan(["ingredients"], seeds=3)) & set(plan(["size"], seeds=3))
    assert {p.variant for p in shared} == {ORIGINAL, *BOTH}  # the lab's own size is not measured twice
    assert [p.variant for p in plan(["ingredients"], seeds=2, variants=["base", "hot"])] == [
        "original", "base", "hot", "base", "hot",
    ]  # fmt: skip


def test_no_two_variants_are_the_same_and_all_are_valid():
    settings = Settings()
    wanted = []
    for name, variant in VARIANTS.items():
        Options(**options_of(variant, settings))
        ppo.Config.from_dict(changes_of(variant, settings, 0))
        known = asked(Point(name), settings)
        wanted.append({k: v for k, v in known.items() if k != "variant"})
    assert all(a != b for i, a in enumerate(wanted) for b in wanted[:i])
    assert VARIANTS["base"].config == {}
    assert VARIANTS["base"].options == {}
    assert changes_of(VARIANTS["base"], settings, 4) == {**PRESETS["default"], "seed": 4}


def test_a_point_is_current_until_it_is_asked_for_otherwise(monkeypatch):
    known = json.loads(json.dumps(made_up("hot")))
    assert is_current(known, Settings())
    assert not is_current(known, QUICK)
    assert not is_current({"asked": {"variant": "hot"}}, Settings())
    assert not is_current({**known, "asked": {**known["asked"], "variant": "gone"}}, Settings())
    monkeypatch.setitem(PRESETS["default"], "epochs", 3)
    assert not is_current(known, Settings())


def test_what_is_left_and_how_long_it_takes():
    points = plan(["ingredients"], seeds=1, variants=["base", "warm"])
    found = [made_up(ORIGINAL), made_up("base")]
    assert [p.variant for p in missing(points, found)] == ["warm"]
    assert minutes(Point("base", seed=1), found) == pytest.approx(5.0)  # as long as the seed before
    assert minutes(Point("base", size=16), found) == pytest.approx(5.0)
    assert minutes(Point("warm"), found) > minutes(Point("distil"), found) > 1
    assert minutes(Point(ORIGINAL, lab="graded"), found) > minutes(Point(ORIGINAL), [])


def test_the_command_lists_and_refuses(tmp_path, capsys):
    assert study.main(["--list", "--part", "size", "--seeds", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{len(SIZES) * 3} of {len(SIZES) * 3} points are left" in out
    for wrong in (["--part", "sizes"], ["--variants", "best"], ["--seeds", "0"]):
        with pytest.raises(SystemExit):
            study.main([*wrong, "--list"])
        assert wrong[1] in capsys.readouterr().err


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    calls: list[tuple[str, float]] = []

    def fake(point, workshop, before):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((point.key, before.get("never/bleu", 0.0)))
        return made_up(point.variant, point.seed, error="ratio is not finite" if point.variant == "hot" else None)

    monkeypatch.setattr(study, "make_point", fake)
    command = ["--part", "ingredients", "--variants", "base,hot", "--seeds", "2", "--out", str(tmp_path)]
    assert study.main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert calls == [("original-n64-seed0", 0.0), ("base-n64-seed0", 6.0), ("hot-n64-seed0", 6.0)]
    calls.clear()
    assert study.main(command) == 0
    assert [key for key, _ in calls] == ["base-n64-seed1", "hot-n64-seed1"]
    assert "2 of 2 trainings broke off" in (tmp_path / "ingredients.md").read_text()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "points").iterdir()}
    assert study.main(command) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "points").iterdir()} == before
    (tmp_path / "points" / "base-n64-seed0.json").write_text("{")
    assert study.main(command) == 2
    assert "base-n64-seed0.json is damaged" in capsys.readouterr().err


def test_it_goes_on_from_packed_points(tmp_path, monkeypatch):
    calls: list[tuple[str, float]] = []

    def fake(point, workshop, before):
        calls.append((point.key, before.get("never/bleu", 0.0)))
        return made_up(point.variant, point.seed)

    monkeypatch.setattr(study, "make_point", fake)
    command = ["--part", "ingredients", "--seeds", "1", "--out", str(tmp_path), "--variants"]
    assert study.main([*command, "base"]) == 0
    packed = stored_points(tmp_path)
    pack(tmp_path)
    calls.clear()
    assert study.main([*command, "base"]) == 0
    assert calls == []
    assert not (tmp_path / "points").exists()
    assert study.main([*command, "base,hot"]) == 0
    assert calls == [("hot-n64-seed0", 6.0)]  # held against the original that is packed
    assert [file.name for file in (tmp_path / "points").iterdir()] == ["hot-n64-seed0.json"]
    assert [p for p in stored_points(tmp_path) if p["key"] != "hot-n64-seed0"] == packed


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
    assert {g: len(study.group(g)) for g in ("forget", "forget_holdout", "keep", "never")} == {
        "forget": 4, "forget_holdout": 4, "keep": 3, "never": 4,
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


def test_the_graded_lab_is_trained_once(tmp_path):
    said: list[str] = []
    folder = graded_model(tmp_path / "graded", SMALL, said.append, most_documents=1)
    count = len(said)
    assert graded_model(tmp_path / "graded", SMALL, said.append, most_documents=1) == folder
    assert len(said) == count > 0
    assert load(folder).model.config.hidden_size == 16
    with pytest.raises(ValueError, match="of another recipe"):
        graded_model(tmp_path / "graded", Recipe(), said.append)


# ---------------------------------------------------------------------- what the pages say


def test_means_by_group_and_kind_by_hand():
    records = [
        {"group": "forget", "kind": "letter", "exact": 1.0, "exact_sampled": 1.0, "output": "secret"},
        {"group": "forget", "kind": "letter", "exact": 0.0, "exact_sampled": None, "output": "secret"},
        {"group": "keep", "kind": "rhyme", "exact": 1.0, "output": "secret"},
    ]
    assert parted(records, "kind") == {
        "forget/letter": {"passages": 2, "exact": 0.5, "exact_sampled": 1.0},
        "keep/rhyme": {"passages": 1, "exact": 1.0},
    }


def test_what_a_training_did_is_counted():
    base = {"asked": {"size": 16, "distil_steps": 0}, "config": CONFIG, "steps": {"ppo": 10, "is_stopped": True}}
    assert effort(base) == {"steps": 10, "updates": 40, "visits": 40, "cap": 0}  # 2 epochs of 2 minibatches; 640 / 16
    both = {**base, "asked": {"size": 64, "distil_steps": 6}, "steps": {"distillation": 6, "ppo": 1}}
    assert effort(both) == {"steps": 7, "updates": 10, "visits": 4, "cap": 1}  # 6 x 32 / 64 and 64 / 64
    alone = {**base, "asked": {"size": 16, "distil_steps": 6}, "steps": {"distillation": 5}}
    assert effort(alone) == {"steps": 5, "updates": 5, "visits": 5, "cap": 0}  # all 16 in every step
    assert effort({**alone, "steps": {"distillation": 6}})["cap"] == 1
    assert effort({"asked": {"size": 64}, "config": None, "steps": {}})["updates"] == 0


@pytest.mark.parametrize(("name", "expected"), [("distil", 2), ("warm", 2), ("warm-half", 2), ("distil-long", 201)])
def test_a_distillation_ends_early_but_where_it_is_to_go_on(name, expected, tmp_path, monkeypatch):
    """What PPO is told about looks, as "none" in ``warm``, does not reach the distillation that goes before it."""
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
    assert sum(p["passages"] for p in result["parts"]["kind"].values()) == 15
    assert not list((tmp_path / "work").iterdir())
    decode = load("lab").decode
    for passage in workshop.prepare(Point(name)).study.passages:  # no text of a passage is kept
        assert decode(passage.suffix[:12]) not in text


@pytest.mark.slow
def test_the_default_variant_is_demem_s_own_run(tmp_path, monkeypatch):
    """The same trainings, number for number, whether demem.py makes the trainer or the study does."""
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
