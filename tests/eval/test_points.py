"""Points in two forms: a file a point, and a line a point. Nothing is lost on the way from one to the other."""

import json
from pathlib import Path

import pytest

from benchmarks.points import main
from eval.points import find_point, pack, read_point, store_point, stored_points
from ppo.io import files

ROOT = Path(__file__).resolve().parents[2]
FIRST = {"seed": 0, "config": {"lr": 1e-4, "name": "\N{GREEK SMALL LETTER ALPHA}\u2028"}, "found": [1.5, float("inf")]}


def test_packing_keeps_every_field_and_sorts_by_key(tmp_path):
    store_point(tmp_path, "b-0.95-seed0", FIRST)
    store_point(tmp_path, "a-seed0", {"seed": 0})
    loose = stored_points(tmp_path)
    assert pack(tmp_path) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["points.jsonl"]
    assert stored_points(tmp_path) == loose == [{"key": "a-seed0", "seed": 0}, {"key": "b-0.95-seed0", **FIRST}]
    text = (tmp_path / "points.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["key"] for line in text.split("\n")[:-1]] == ["a-seed0", "b-0.95-seed0"]
    assert pack(tmp_path) == 2
    assert (tmp_path / "points.jsonl").read_text(encoding="utf-8") == text  # a second time changes nothing


def test_a_file_counts_in_place_of_a_line_and_joins_it(tmp_path):
    for key in ("a", "b"):
        store_point(tmp_path, key, {"steps": 3})
    pack(tmp_path)
    store_point(tmp_path, "b", {"steps": 4})  # measured again, with other settings
    store_point(tmp_path, "c", {"steps": 5})
    wanted = [{"key": "a", "steps": 3}, {"key": "b", "steps": 4}, {"key": "c", "steps": 5}]
    assert stored_points(tmp_path) == wanted
    assert [find_point(tmp_path, key) for key in ("a", "b", "c", "d")] == [*wanted, None]
    pack(tmp_path)
    assert stored_points(tmp_path) == wanted
    with pytest.raises(ValueError, match="holds no point d"):
        read_point(tmp_path, "d")


def test_a_kill_while_packing_loses_nothing(tmp_path, monkeypatch):
    store_point(tmp_path, "a", FIRST)
    before = stored_points(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path)
    assert stored_points(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path)
    assert stored_points(tmp_path) == before  # in both places now
    assert pack(tmp_path) == 1
    assert stored_points(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("points/a.json", "{", r"a\.json is damaged: .*; delete it to measure the point again"),
        ("points/a.json", "[1]", r"a\.json is damaged: it holds a list; delete it"),
        ("points.jsonl", '{"key": "a"}\n{"key": "a"}\n', r"points\.jsonl, line 2 is damaged: its key 'a'"),
        ("points.jsonl", '{"seed": 0}\n', r"points\.jsonl, line 1 is damaged: its key None"),
        ("points.jsonl", '{"key": "a"}\n{"key"', r"points\.jsonl, line 2 is malformed JSON"),
    ],
)
def test_damage_is_named(tmp_path, name, text, message):
    (tmp_path / "points").mkdir()
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        stored_points(tmp_path)
    with pytest.raises(ValueError, match=message):
        pack(tmp_path)
    assert (tmp_path / name).read_text(encoding="utf-8") == text


def test_the_command_packs_folders_and_refuses_one_without_points(tmp_path, capsys):
    store_point(tmp_path / "a", "x", {})
    assert main([str(tmp_path / "a")]) == 0
    assert "points.jsonl: 1 points" in capsys.readouterr().out
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "b holds no points" in capsys.readouterr().err


def test_results_hold_packed_points_alone():
    assert not list((ROOT / "results").glob("*/points")), "python -m benchmarks.points results/…"
    for file in (ROOT / "results").glob("*/points.jsonl"):
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        assert lines == [json.dumps(point, ensure_ascii=False) for point in stored_points(file.parent)]
