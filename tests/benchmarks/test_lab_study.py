"""The lab study from outside: its points, resuming, and the effort of a training, worked out by hand."""

from __future__ import annotations

import json

import pytest

import ppo
from benchmarks.study import run as study
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
from benchmarks.study.train import parted
from benchmarks.study.variants import BOTH, VARIANTS
from eval.points import pack, stored_points
from tests.eval.test_pareto import GOOD
from tests.eval.test_pareto import ORIGINAL as UNTOUCHED
from unlearning.options import PRESETS, Options

# ---------------------------------------------------------------------- made-up points


CONFIG = {"prompts_per_step": 64, "samples_per_prompt": 1, "minibatch": 32, "epochs": 2}


def made_up(variant: str, seed: int = 0, size: int = SIZE, lab: str = "lab", error: str | None = None, **changes):
    """A point as it is stored; ``keep__exact`` stands for "keep/exact"."""
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
        Options(**{"preset": "demem", **options_of(variant, settings)})
        ppo.Config.from_dict(changes_of(variant, settings, 0))
        known = asked(Point(name), settings)
        wanted.append({k: v for k, v in known.items() if k != "variant"})
    assert all(a != b for i, a in enumerate(wanted) for b in wanted[:i])
    assert VARIANTS["base"].config == {}
    assert VARIANTS["base"].options == {}
    assert changes_of(VARIANTS["base"], settings, 4) == {**PRESETS["demem"], "seed": 4}


def test_a_point_is_current_until_it_is_asked_for_otherwise(monkeypatch):
    known = json.loads(json.dumps(made_up("hot")))
    assert is_current(known, Settings())
    assert not is_current(known, QUICK)
    assert not is_current({"asked": {"variant": "hot"}}, Settings())
    assert not is_current({**known, "asked": {**known["asked"], "variant": "gone"}}, Settings())
    monkeypatch.setitem(PRESETS["demem"], "epochs", 3)
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
