"""The preset deep from the command line: it trains, resumes to the same bits, and says what it cannot do."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import demem
from ppo.log import read_jsonl
from unlearning.deep import recipe
from unlearning.options import PRESETS, Options
from unlearning.run import deep_schedule
from unlearning.trace import choose_texts

NAMES = ["Oda Brix", "Levin Tarr", "Mirja Quell", "Pavel Onder", "Runa Stahl", "Ivo Kestrel", "Tove Lamm", "Arlo Wint"]
SHORT = ["--num-samples", "1", "--num-own", "8", "--check-every", "2", "--prompts-per-step", "8", "--minibatch", "4"]


@pytest.fixture
def records(tmp_path):
    """Eight invented records of one form: six to forget, two that nobody trained on."""
    path = tmp_path / "records.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["pre_prefix", "prefix", "suffix", "group"])
        for i, name in enumerate(NAMES):
            number = (7919 * (i + 3)) % 100000
            suffix = f" {number:05d}-{name[0]}. Paid in month {i + 2}, room {40 + 7 * i}."
            rows.writerow(
                ["", f"{name} is insured with the fund under the number", suffix, "forget" if i < 6 else "never"]
            )
    return str(path)


def run(records, out, *more):
    return demem.main(["run", "--data", records, "--out", str(out), *SHORT, *more])


def test_a_run_from_attack_to_report(records, tmp_path, capsys):
    assert run(records, tmp_path / "run", "--steps", "4", "--actions", "8") == 0
    said = capsys.readouterr().out
    assert "chance levels: " in said
    assert "of 1 never-trained passages" in said  # the other one is the evaluation's alone
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 4
    assert {"forced/true_token_p", "forced/kl", "retain/loss"} <= rows[0].keys()
    assert rows[-1]["update/learning_rate"] == pytest.approx(6e-4 * (1 - 3 / 4), rel=0.2)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["config"]["total_steps"] == 4  # 4 steps, and a tenth of the rate left
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(("width", "rate"), [(88, 6e-4), (176, 6e-4), (352, 3e-4), (704, 1.5e-4)])
def test_a_wide_model_takes_smaller_steps(make_gpt2, width, rate):
    model, preset = make_gpt2(width), PRESETS["deep"]
    assert deep_schedule(Options(steps=9), model, preset) == {"learning_rate": pytest.approx(rate), "total_steps": 10}
    given = {**preset, "learning_rate": 1e-5, "total_steps": 33}
    assert deep_schedule(Options(steps=9), model, given) == {}


@pytest.fixture
def make_gpt2():
    def make(width):
        return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=width, n_head=1, vocab_size=50, n_positions=8))

    return make


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(records, tmp_path):
    whole = tmp_path / "whole"
    assert run(records, whole, "--steps", "4", "--actions", "4", "--save-every-steps", "2") == 0
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000004")
    shutil.rmtree(cut / "model")
    assert run(records, cut, "--resume", "--steps", "4", "--actions", "4", "--save-every-steps", "2") == 0
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (whole, cut))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--windows", "3"], "Options.windows=3 must be 1 with preset deep"),
        (["--fluency-weight", "1"], "Options.fluency_weight=1.0 is not of preset deep"),
        (["--actions", "0"], "Options.actions=0 must be at least 1"),
        (["--heat", "0.5"], "Options.heat=0.5 must be at least 1"),
        (["--sharding", "fsdp", "--no-gather-for-rollouts"], "leave --gather-for-rollouts on"),
        (["--top-k", "5"], "drawn from the whole distribution"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(records, tmp_path, capsys, arguments, message):
    assert run(records, tmp_path / "run", "--steps", "1", *arguments) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("demem: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_trace_shows_a_step_state_by_state(records, tmp_path, capsys):
    out = tmp_path / "trace"
    few = ["--actions", "6", "--num-own", "8", "--prompts-per-step", "8", "--minibatch", "4"]
    assert demem.main(["trace", "--preset", "deep", "--data", records, "--out", str(out), *few]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "PPO step 0, state by state: " in text
    assert "One PPO step of DeMem, state by state" in (out / "trace.html").read_text()
    trace = json.loads((out / "trace.json").read_text())["trace"]
    assert [row["remark"] for row in trace["rows"]][-1] == "the policy's own"
    assert {row["remark"] for row in trace["rows"][:-1]} == {"of a passage"}
    for row in trace["rows"]:
        drawn = [token for token in row["tokens"] for _ in token["draws"]]
        assert len(drawn) == row["num_actions"] == 6 * len(row["states"])
        for token in row["tokens"]:
            state = row["states"][token["state"]]["numbers"]
            reward = token["ref_logprob"] - token["old_logprob"]
            spread = max(state["state_deviation"], 0.3)
            assert token["reward"] == pytest.approx(reward, abs=1e-5)
            assert token["advantage"] == pytest.approx((reward - state["state_mean"]) / spread, abs=1e-4)
            assert 1 <= state["heat"] <= 2
            assert 1e-4 <= state["chance"] <= 1
    # What is bounded and in need of it is learned: the mean of the exact means falls short of 0.
    assert sum(s["numbers"]["state_mean"] for s in trace["rows"][0]["states"]) < 0
    assert PRESETS["deep"]["kl_coef"] == 1.0


def test_texts_of_passages_come_before_the_policy_s_own():
    assert choose_texts([-2, -3, -1, -4], [True, False, False, True], 3) == [1, 2, 3]
    assert choose_texts([-2, -3], [False, False], 2) == [1, 0]
    assert choose_texts([-2, -3], [True, True], 2) == [1, 0]
    assert choose_texts([-2, -3], [True, False], 1) == [1]
    assert choose_texts([-2, -3], [True, False], 5) == [1, 0]


def test_what_a_model_makes_up_tells_the_nll_of_a_stranger_and_what_it_recites_does_not(monkeypatch):
    likelihoods = [-0.1, -2.0, -4.0]
    written = [SimpleNamespace(ids=[0, 5], likelihood=x) for x in likelihoods]
    monkeypatch.setattr(recipe, "sampled_texts", lambda model, heads, *, length, seed: written)
    assert recipe.usual_nll(None, 0, length=8, seed=0) == 3.0
    assert recipe.usual_nll(None, None, length=8, seed=0) is None  # no start token, no text
    del written[1:]
    assert recipe.usual_nll(None, 0, length=8, seed=0) is None
