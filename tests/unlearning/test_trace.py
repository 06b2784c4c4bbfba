"""``demem.py trace``: which responses it shows, what it refuses, and that a run is read and not changed."""

import json
from dataclasses import replace

import pytest

import demem
import ppo.sampler
from tests.unlearning.test_demem import fails, write_rows
from unlearning.trace import choose_rows


def test_rows_go_from_the_worst_score_to_the_best():
    assert choose_rows([5, 1, 1, 3], 2) == [1, 0]
    assert choose_rows([5, 1, 1, 3], 3) == [1, 3, 0]
    assert choose_rows([5, 1, 1, 3], 1) == [1]
    assert sorted(choose_rows([2, 2, 2], 3)) == [0, 1, 2]
    assert sorted(choose_rows([2, 2], 5)) == [0, 1]
    assert choose_rows(range(9), 3) == [0, 4, 8]


@pytest.mark.parametrize("preset", ["paper-as-run", "paper"])
def test_a_preset_s_trace_shows_the_step_that_the_preset_takes(tmp_path, monkeypatch, preset):
    data, out = write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "trace"
    groups = ["--num-forget", "4", "--num-holdout", "2", "--num-never", "2"]
    sizes = ["--prompts-per-step", "4", "--minibatch", "4", "--epochs", "1", "--num-own", "8"]
    generate = ppo.sampler.generate

    def generate_two_tokens(*arguments, **named):  # as an early end would leave them
        result = generate(*arguments, **named)
        names = ("tokens", "mask", "action_mask", "logprobs", "entropy", "values")
        return replace(result, **{name: getattr(result, name)[:, :2] for name in names})

    monkeypatch.setattr(ppo.sampler, "generate", generate_two_tokens)
    arguments = ["trace", "--preset", preset, "--data", data, *groups, *sizes, "--after", "1", "--rows", "1"]
    assert demem.main([*arguments, "--out", str(out)]) == 0
    row = json.loads((out / "trace.json").read_text())["trace"]["rows"][0]
    ids = [token["id"] for token in row["tokens"]]
    if preset == "paper":
        assert len(ids) == 2
    else:  # prompt tokens stand before them as actions
        whole = [*row["prompt_ids"], *ids[-2:]]
        assert ids == whole[-55:]
        assert len(ids) > 2


def test_bad_input_is_one_line(tmp_path, capsys):
    assert "TraceOptions.rows=0 must be at least 1" in fails(capsys, "trace", "--rows", "0")
    assert "TraceOptions.after=-1 must be at least 0" in fails(capsys, "trace", "--after", "-1")
    assert "--rows takes INT" in fails(capsys, "trace", "--rows", "many")
    assert "holds no checkpoint" in fails(capsys, "trace", "--resume", "--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_run_lends_its_settings_and_its_checkpoint_and_stays_as_it_is(tmp_path, capsys):
    data, out = write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "run"
    groups = ["--num-forget", "4", "--num-holdout", "2", "--num-never", "2"]
    sizes = ["--prompts-per-step", "4", "--minibatch", "4", "--retain-sequences", "3", "--num-own", "8"]
    ends = ["--preset", "demem", "--steps", "1", "--check-every", "1", "--num-samples", "0", "--epochs", "3"]
    assert demem.main(["train", "--data", data, *groups, *sizes, *ends, "--out", str(out)]) == 0
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    steps = []
    for more in ([], ["--after", "1"], ["--resume"]):
        capsys.readouterr()
        assert demem.main(["trace", "--out", str(out), "--rows", "2", *more]) == 0
        assert {p: p.read_bytes() for p in files} == files
        assert {p.name for p in out.rglob("*") if p.is_file() and p not in files} == {"trace.html", "trace.json"}
        trace = json.loads((out / "trace.json").read_text())["trace"]
        assert len(trace["rows"]) == 2
        assert len(trace["minibatches"]) == trace["config"]["epochs"] == 3  # the run's, not the preset's
        assert f"PPO step {trace['step']}, token by token" in capsys.readouterr().out
        steps.append(trace)
    assert [trace["step"] for trace in steps] == [0, 1, 1]
    assert steps[1]["rows"] == steps[2]["rows"]  # a checkpoint goes on bit for bit
    assert "is not this run's" in fails(capsys, "trace", "--out", str(out), "--resume", "--epochs", "2")
    assert demem.main(["trace", "--out", str(out), "--epochs", "1"]) == 0
