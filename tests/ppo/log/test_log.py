"""The files that a run writes about itself."""

import csv
import json
import sys
import warnings
from pathlib import Path

import pytest

from ppo.log import HEADLINE, RunLog, headline, read_jsonl, run_log
from tests.fakes import fake_tensorboard, random_rollout


def test_a_resumed_run_drops_later_lines_and_a_line_that_a_kill_cut_off(tmp_path):
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
    with pytest.raises(ValueError, match=r"holds a run without a checkpoint .* delete the folder"):
        RunLog(tmp_path)
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds another run: resume it"):
        RunLog(tmp_path)


def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.io.rows.MAX_LINE_BYTES", 100)
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 200)
    with pytest.raises(ValueError, match=r"x.jsonl, line 2 is longer than 100 bytes"):
        read_jsonl(path)


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"x.jsonl, line 2 is not JSON"):
        read_jsonl(path)


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunLog(None).metrics(0, {"a/b": 1.0})
    assert list(tmp_path.iterdir()) == []


def table(path):
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_has_every_metric_whenever_it_first_appears(tmp_path):
    log = RunLog(tmp_path)
    log.metrics(0, {"a/b": 0.1})
    log.metrics(1, {"a/b": float("nan"), 'odd, "name"': 1e-12})
    log.metrics(2, {"a/b": 3.0})
    assert (tmp_path / "metrics.csv").read_text() == ('step,a/b,"odd, ""name"""\n0,0.1,\n1,nan,1e-12\n2,3.0,\n')
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_resumed_run_drops_later_rows_of_the_table(tmp_path):
    log = RunLog(tmp_path)
    for step in range(4):
        log.metrics(step, {"a/b": float(step)} | ({"probe/c": 1.0} if step == 3 else {}))
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("4,0.")  # killed while writing
    resumed = RunLog(tmp_path, first_step=2)
    assert [row["step"] for row in table(tmp_path)] == ["0", "1"]
    resumed.metrics(2, {"a/b": 9.0, "probe/c": 2.0})
    assert table(tmp_path)[-1] == {"step": "2", "a/b": "9.0", "probe/c": "2.0"}
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [{name: float(v) for name, v in row.items() if v} for row in table(tmp_path)] == rows


def test_a_run_without_a_table_gets_one(tmp_path):
    RunLog(tmp_path).metrics(0, {"a/b": 1.0})
    (tmp_path / "metrics.csv").unlink()
    RunLog(tmp_path, first_step=1).metrics(1, {"a/b": 2.0})
    assert [row["a/b"] for row in table(tmp_path)] == ["1.0", "2.0"]


def test_the_headline_leaves_out_metrics_that_are_missing():
    assert headline(HEADLINE | {"extracted": "forget/exact"}, {"score/mean": -0.25, "forget/exact": 0.0312}) == {
        "score": "-0.250", "extracted": "0.031",
    }  # fmt: skip


def test_tensorboard_shows_every_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, use_tensorboard=None)
    for step in range(4):
        log.metrics(step, {"a/b": float(step)})
    log.close()
    resumed = RunLog(tmp_path, first_step=2, use_tensorboard=True)
    for step in (2, 3, 4):
        resumed.metrics(step, {"a/b": 10.0 + step})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a/b")] == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]


def test_tensorboard_hides_the_points_of_an_earlier_run_from_the_first_step_on(tmp_path, monkeypatch):
    writers = fake_tensorboard(monkeypatch)
    for first_step in (0, 3):
        RunLog(tmp_path / str(first_step), first_step=first_step, use_tensorboard=True)
    assert [writer.purge_step for writer in writers] == [0, 3]


def test_tensorboard_shows_the_second_of_two_runs_in_one_folder(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for value in (1.0, 2.0):
        log = RunLog(tmp_path, use_tensorboard=True)
        log.metrics(0, {"a/b": value})
        log.close()
        for name in ("metrics.jsonl", "metrics.csv"):
            (tmp_path / name).unlink()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a/b")] == [(0, 2.0)]


def test_without_tensorboard_it_is_an_error_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were not installed
    RunLog(tmp_path / "one", use_tensorboard=None).metrics(0, {"a/b": 1.0})
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["metrics.csv", "metrics.jsonl"]
    with pytest.raises(ValueError, match="use_tensorboard=True needs the package tensorboard: pip install tensorboard"):
        RunLog(tmp_path / "two", use_tensorboard=True)


def test_a_unicode_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    RunLog(tmp_path).metrics(0, {"a\u2028b": 1.0})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 0, "a\u2028b": 1.0}]


def test_a_log_that_was_deleted_or_cut_is_mentioned_on_resume(tmp_path):
    log = RunLog(tmp_path)
    for step in range(4):
        log.metrics(step, {"a/b": float(step)})
    log.close()
    (tmp_path / "samples.jsonl").touch()
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunLog(tmp_path, first_step=4).close()
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[1:]))
    with pytest.warns(RuntimeWarning, match="does not hold 1 of the 4 steps before this one, such as step 0"):
        RunLog(tmp_path, first_step=4).close()
    metrics.unlink()
    with pytest.warns(RuntimeWarning, match=r"metrics\.jsonl does not hold 4 of the 4 steps before this one"):
        RunLog(tmp_path, first_step=4).close()


def test_a_log_is_read_with_a_bound(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' * 10)
    monkeypatch.setattr(run_log, "MOST_BYTES", 12 * 9)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 10 is beyond the first 108 bytes, and no more"):
        read_jsonl(path)
    monkeypatch.setattr(run_log, "MOST_BYTES", 12 * 10)
    assert len(read_jsonl(path)) == 10


def test_no_name_and_no_text_in_the_table_is_a_formula(tmp_path):
    """A log that somebody sent may hold texts; a function of one's own may name its metric as it likes."""
    sent = {"step": 0, "=cmd|'/c calc'!A0": -0.5, "b": "=1+1", "c": "-2+3", "d": -3, "e": None, "f": " @x", "g": ["+1"]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(sent) + "\n")
    log = RunLog(tmp_path, first_step=1)
    log.metrics(1, {"+x/y": -1.5, "b": 2.0})
    log.metrics(2, {"-z": float("-inf"), "@w\t": 1e-3, "h" * 5000: 1.0})
    log.close()
    head, *rows = list(csv.reader((tmp_path / "metrics.csv").open(newline="")))
    assert head == [
        "step", "'=cmd|'/c calc'!A0", "b", "c", "d", "e", "f", "g", "'+x/y", "'-z", "'@w\\x09", "h" * 1000,
    ]  # fmt: skip
    assert rows == [
        ["0", "-0.5", "'=1+1", "'-2+3", "-3", "", "' @x", "['+1']", "", "", "", ""],
        ["1", "", "2.0", "", "", "", "", "", "-1.5", "", "", ""],
        ["2", "", "", "", "", "", "", "", "", "-inf", "0.001", "1.0"],
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    log = RunLog(tmp_path)
    log.metrics(0, {"a/b": 1.0})
    monkeypatch.setattr(run_log, "append_text", lambda path: Path("/dev/full").open("a"))  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: '.*samples\.jsonl'"):
        log._append("samples.jsonl", {"step": 0})


def test_a_checkpoint_that_names_a_far_step_takes_no_list_of_all_steps_before(tmp_path):
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 2}\n')
    told = f"does not hold {2**53 - 3} of the {2**53 - 1} steps before this one, such as step 1"
    with pytest.warns(RuntimeWarning, match=told):
        RunLog(tmp_path, first_step=2**53 - 1, use_tensorboard=False).close()


def test_samples_that_were_deleted_are_mentioned(tmp_path):
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.warns(RuntimeWarning, match=r"samples\.jsonl was deleted: the run goes on"):
        RunLog(tmp_path, first_step=1, use_tensorboard=False).close()
