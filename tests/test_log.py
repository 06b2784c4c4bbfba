"""The files of a run."""

import json

import pytest

from ppo.log import RunLog, read_jsonl
from tests.fakes import random_rollout


def test_a_resumed_run_drops_later_lines_and_a_cut_off_one(tmp_path):
    log = RunLog(tmp_path)
    for step in range(3):
        log.metrics(step, {"a/b": step / 2})
        log.samples(step, random_rollout([2, 3]), count=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "a/')  # killed while writing
    RunLog(tmp_path, first_step=2).metrics(2, {"a/b": 9.0})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 0, "a/b": 0.0}, {"step": 1, "a/b": 0.5}, {"step": 2, "a/b": 9.0},
    ]  # fmt: skip
    assert [r["step"] for r in read_jsonl(tmp_path / "samples.jsonl")] == [0, 1]


def test_another_run_is_not_overwritten(tmp_path):
    RunLog(tmp_path).metrics(0, {"a/b": 1.0})
    with pytest.raises(ValueError, match="holds another run: resume it"):
        RunLog(tmp_path)


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"x.jsonl, line 2 is not JSON"):
        read_jsonl(path)


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunLog(None).metrics(0, {"a/b": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_used_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    RunLog(tmp_path, use_tensorboard=True).metrics(0, {"a/b": 1.0})
    assert list((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "a/b": 1.0}


def test_unicode_line_ends_inside_a_text_are_no_line_ends(tmp_path):
    RunLog(tmp_path).metrics(0, {"a\u2028b": 1.0})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 0, "a\u2028b": 1.0}]
