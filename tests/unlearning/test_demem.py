"""The program from outside: what bad input gets, and a short run on the lab from attack to report."""

import json
from pathlib import Path

import pytest

import demem
import unlearning.memorise
from eval.results import write_json
from ppo.log import read_jsonl
from tests.processes import torchrun
from unlearning.options import PRESETS
from unlearning.recipe import is_forgotten

ROOT = Path(demem.__file__).parent
SHORT = ["--steps", "2", "--num-samples", "1", "--check-every", "1", "--num-own", "16"]


def fails(capsys, *arguments):
    """Exit status 2 and one line on stderr, which is returned."""
    assert demem.main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("demem: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minibatch", "7"], "Config.minibatch=7 must divide"),
        (["--learning-rate", "fast"], "--learning-rate takes FLOAT, not 'fast'"),
        (["--lora-rank", "8", "--sharding", "fsdp"], "--lora-rank 8 merges the adapter at the end"),
        (["--steps", "0"], "Options.steps=0 must be at least 1"),
        (["--num-forget", "abc"], "--num-forget takes INT"),
        (["--num-forget", "8"], "lab names the group of every passage"),
        (["--encoder", "some/encoder"], "Options.encoder='some/encoder' goes with --preset paper"),
        (["--fluency-low", "7"], "Options.fluency_low=7.0 must lie between 0 and fluency_high"),
        (["--preset", "best"], "Options.preset='best' must be one of demem, deep, paper"),
        (["--model", "/nonexistent/model"], "/nonexistent/model"),
        (["--data", "/nonexistent/data.csv"], "/nonexistent/data.csv"),
        (["--retain", "/nonexistent/notes.txt"], "/nonexistent/notes.txt"),
        (["--device", "tpu"], "device=tpu is not there: this machine has"),
        (["--response-length", "400"], "exceeds the model's context of 256"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, arguments, message):
    assert message in fails(capsys, "attack", *arguments, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_wrong_data_is_named(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("prefix,ending\na,b\n")
    line = fails(capsys, "attack", "--data", str(path), "--out", str(tmp_path / "run"))
    assert "rows.csv" in line
    assert "suffix" in line


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "something").write_text("x")
    assert "is not empty" in fails(capsys, "run", "--out", str(tmp_path))
    assert "is a file" in fails(capsys, "run", "--out", str(tmp_path / "something"))
    assert "holds no run" in fails(capsys, "report", "--out", str(tmp_path))
    assert "holds no run" in fails(capsys, "evaluate", "--out", str(tmp_path))
    assert "holds no run" in fails(capsys, "run", "--resume", "--out", str(tmp_path))
    assert "is not empty" in fails(capsys, "train", "--out", str(tmp_path))


def test_a_run_goes_on_with_its_own_settings(tmp_path, capsys):
    config = demem.ppo.Config(**PRESETS["demem"])
    write_json(tmp_path / "config.json", {"options": {"steps": 5, "model": "lab"}, "config": config.to_dict()})
    line = fails(capsys, "run", "--resume", "--learning-rate", "1e-3", "--out", str(tmp_path))
    assert "--learning-rate 0.001 is not this run's 0.0002" in line
    assert "--model 'x' is not this run's 'lab'" in fails(capsys, "train", "--model", "x", "--out", str(tmp_path))


def test_a_damaged_folder_is_named(tmp_path, capsys):
    config = demem.ppo.Config(**PRESETS["demem"])
    write_json(tmp_path / "config.json", {"options": {"model": "lab"}, "config": config.to_dict()})
    write_json(tmp_path / "evaluation.json", {"meta": {}})
    (tmp_path / "passages.jsonl").write_text("{}\n")
    assert "evaluation.json is damaged: KeyError('before')" in fails(capsys, "report", "--out", str(tmp_path))


def test_a_training_without_a_checkpoint_is_forgotten_with_all_its_logs(tmp_path):
    logs, kept = ("metrics.jsonl", "metrics.csv", "samples.jsonl", "tensorboard/events.1"), "config.json"
    (tmp_path / "tensorboard").mkdir()
    for name in (*logs, kept):
        (tmp_path / name).write_text("{}\n")
    for _ in range(2):
        demem.forget_training(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [kept]


def test_an_unknown_option_is_argparse_s(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        demem.main(["run", "--lerning-rate", "1"])
    assert error.value.code == 2
    assert "there is no option --lerning-rate: did you mean --learning-rate?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_run_writes_everything(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    shown = []
    show = demem.LivePage.show

    def show_and_keep(page, step):
        show(page, step)
        shown.append((step, 'http-equiv="refresh"' in (out / "report.html").read_text()))

    monkeypatch.setattr(demem.LivePage, "show", show_and_keep)
    assert demem.main(["run", "--live", "--out", str(out), *SHORT]) == 0
    assert shown == [(0, True), (1, True), (2, True)]
    assert 'http-equiv="refresh"' not in (out / "report.html").read_text()
    names = {p.name for p in out.iterdir()}
    wanted = {"config.json", "metrics.jsonl", "metrics.csv", "samples.jsonl", "evaluation.json",
              "passages.jsonl", "report.html"}  # fmt: skip
    assert wanted | {"model"} <= names
    results = json.loads((out / "evaluation.json").read_text())
    assert results["before"]["summary"]["forget/exact"] >= 0.95
    assert results["after"]["summary"].keys() == results["before"]["summary"].keys()
    assert results["meta"]["seed"] == 0
    assert "<script src" not in (out / "report.html").read_text()
    assert "http" not in (out / "report.html").read_text().replace("http-equiv", "")
    passages = [json.loads(line) for line in (out / "passages.jsonl").read_text().splitlines()]
    assert len(passages) == sum(v for k, v in results["before"]["summary"].items() if k.endswith("/passages"))
    assert all({"id", "truth", "before", "after"} <= p.keys() for p in passages)
    said = capsys.readouterr().out
    assert "before" in said
    assert "\nNot clean: secrets still emitted " in said.rpartition("Secret still emitted")[2]
    assert "of the memory" in said.lower()
    from transformers import AutoModelForCausalLM

    _, info = AutoModelForCausalLM.from_pretrained(out / "model", output_loading_info=True)
    assert not info["unexpected_keys"]


def write_rows(path, count):
    """Rows of a few words each, no 20 tokens shared."""
    rows = [
        {"prefix": f"The value of row {i * 7919 % 1000} is", "suffix": f" {i * 104729 % 10000} in all."}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "label"), [("demem", "extracted="), ("paper-as-run", "score=")])
def test_a_training_can_be_watched(tmp_path, capsys, monkeypatch, preset, label):
    data, out, shown = write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "run", []
    show = demem.LivePage.show

    def show_and_keep(page, step):
        show(page, step)
        shown.append((step, 'http-equiv="refresh"' in (out / "report.html").read_text()))

    monkeypatch.setattr(demem.LivePage, "show", show_and_keep)
    groups = ["--num-forget", "4", "--num-holdout", "2", "--num-never", "2", "--num-samples", "0", "--num-own", "8"]
    sizes = ["--prompts-per-step", "4", "--minibatch", "4", "--epochs", "1", "--steps", "2", "--check-every", "1"]
    options = ["--preset", preset, "--live", *groups, *sizes]
    assert demem.main(["train", "--data", data, *options, "--out", str(out)]) == 0
    assert shown == [(0, True), (1, True), (2, True)]
    assert 'http-equiv="refresh"' not in (out / "report.html").read_text()
    line = capsys.readouterr().err
    assert "1/2 [" in line
    assert label in line
    if preset == "demem":  # known from the attack before the first step is over
        assert "extracted=" in next(part for part in line.split("\r") if "0/2 [" in part and "extracted" in part)


@pytest.mark.slow
def test_responses_are_as_long_as_the_suffixes_unless_said_otherwise(tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 8)
    common = ["attack", "--data", data, "--num-forget", "2", "--num-holdout", "2", "--num-never", "2"]
    assert demem.main([*common, "--num-samples", "0", "--out", str(tmp_path / "a")]) == 0
    results = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert results["before"]["summary"]["never/passages"] == 2
    lengths = json.loads((tmp_path / "a" / "config.json").read_text())["config"]["response_length"]
    rows = read_jsonl(tmp_path / "a" / "passages.jsonl")
    assert lengths in {row["before"]["length_truth"] for row in rows if row["group"] == "forget"}
    shorter = ["--preset", "demem", "--response-length", "3"]
    parsed = demem.parse([*common, *shorter, "--out", str(tmp_path / "b")])
    assert demem.prepare(*parsed).config.response_length == 3
    again = demem.prepare(*demem.parse(["train", "--out", str(tmp_path / "b")])).config
    assert again.response_length == again.min_response_length == 3  # a policy that may end early learns to
    paper = demem.parse([*common, "--preset", "paper", "--out", str(tmp_path / "c")])
    assert demem.prepare(*paper).config.min_response_length == 0


@pytest.mark.slow
def test_memorise_goes_on_where_it_was_and_never_shows_the_never_group(tmp_path, monkeypatch):
    data = write_rows(tmp_path / "rows.jsonl", 8)
    seen = []
    plain = unlearning.memorise.memorise
    monkeypatch.setattr(unlearning.memorise, "memorise", lambda model, variants, **more: seen.append(variants) or plain(model, variants, **more))  # fmt: skip # noqa: E501
    out = str(tmp_path / "m")
    numbers = ["--num-forget", "2", "--num-holdout", "2", "--num-never", "2", "--minibatch", "2", "--prompts-per-step", "2"]  # fmt: skip # noqa: E501
    command = ["memorise", "--data", data, *numbers, "--memorise-epochs", "2", "--out", out]
    assert demem.main(command) == 0
    assert len(seen[0]) == 4
    history = json.loads((tmp_path / "m" / "memorise.json").read_text())["history"]
    assert demem.main(["memorise", "--resume", "--out", out]) == 0
    assert json.loads((tmp_path / "m" / "memorise.json").read_text())["history"] == history


def test_training_stops_at_the_floor_or_where_none_is_known_at_approximate_copies():
    look = {"forget/exact": 0.04, "forget/bleu": 20.0, "forget/approximate": 0.03, "forget/empty": 0.0}
    assert is_forgotten(look, 0.05, 21.0)
    assert not is_forgotten(look, 0.05, 19.0)
    assert not is_forgotten(look, 0.03, 21.0)
    assert is_forgotten(look, 0.05, 0.0)
    assert not is_forgotten(look | {"forget/approximate": 0.1}, 0.05, 0.0)
    assert not is_forgotten(look | {"forget/empty": 0.01}, 0.05, 21.0)
    assert is_forgotten(look | {"forget/empty": 0.01}, 0.05, 21.0, may_be_empty=True)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 8)
    groups = ["--num-forget", "4", "--num-holdout", "2", "--num-never", "2"]
    sizes = ["--prompts-per-step", "4", "--minibatch", "4", "--retain-sequences", "3", "--num-own", "8"]
    ends = ["--steps", "2", "--check-every", "1", "--target-exact", "0", "--num-samples", "0"]
    command = ["run", "--data", data, *groups, *sizes, *ends, "--out"]
    assert demem.main([*command, str(tmp_path / "one")]) == 0
    done = torchrun("demem.py", *command, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("\nreport: ") == 1  # process 0 alone talks
    one, two = tmp_path / "one", tmp_path / "two"
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    assert sorted(p.name for p in (one / "model").iterdir()) == sorted(p.name for p in (two / "model").iterdir())
    texts = [
        [(p["id"], p["before"]["output"], p["after"]["output"]) for p in read_jsonl(run / "passages.jsonl")]
        for run in (one, two)
    ]
    assert texts[0] == texts[1]
    results = [json.loads((run / "evaluation.json").read_text()) for run in (one, two)]
    assert results[1]["meta"]["processes"] == 2
    for when in ("before", "after"):
        assert results[1][when]["summary"] == pytest.approx(results[0][when]["summary"], rel=1e-3, abs=1e-3)
    rows = [read_jsonl(run / "metrics.jsonl") for run in (one, two)]
    assert [list(row) for row in rows[0]] == [list(row) for row in rows[1]]
    bad = torchrun("demem.py", *command, str(tmp_path / "three"), "--minibatch", "1")
    assert bad.returncode != 0
    assert bad.stderr.count("demem: ") == 1
    assert "demem: Config.minibatch=1 counts over all processes" in bad.stderr
