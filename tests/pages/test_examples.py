"""Every example runs as it says, with tiny settings, and does what its docstring promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples import (
    environment,
    foreign_engine,
    from_trl,
    grpo,
    lora,
    own_advantage,
    own_critic,
    own_log,
    own_loop,
    own_loss,
    own_sampler,
    reward,
    reward_model,
    several_processes,
    token_reward,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"-m examples.{path.stem}" in text.split('"""')[1]


def test_the_policy_learns_to_earn_the_reward():
    first, last = reward.main(steps=6, prompts_per_step=32)
    assert last > first + 0.2


def test_token_rewards_reach_their_tokens():
    repeats = token_reward.main(steps=5, prompts_per_step=32)
    assert repeats[-1] < repeats[0] - 0.3


def test_an_adapter_is_trained_alone():
    trainer = lora.main(steps=2, prompts_per_step=8)
    trained = trainer.policy.actor.trained_parameters()
    assert all("lora_" in name or "value_head" in name for name in trained)
    moved = [name for name, p in trained.items() if "lora_B" in name and p.abs().max() > 0]
    assert len(moved) == 8  # q and v of four layers; only B moves at first, because it starts at 0
    assert trainer.state.frozen is trainer.model


def test_an_own_loop_resumes_in_the_middle(monkeypatch):
    resume, calls = own_loop.ppo.Trainer.resume, []

    def resume_and_count(*arguments):
        calls.append(arguments)
        return resume(*arguments)

    monkeypatch.setattr(own_loop.ppo.Trainer, "resume", resume_and_count)
    history = own_loop.main(steps=3, prompts_per_step=16)
    assert all({"score/mean", "policy/loss"} <= metrics.keys() for metrics in history)
    assert 1 <= len(history) <= 3
    assert len(calls) == 1
    monkeypatch.setattr(own_loop, "questions", lambda samples: [0.0] * len(samples))  # so no step makes an update
    assert own_loop.main(steps=3, prompts_per_step=16) == []
    assert len(calls) == 2


def test_grpo_needs_no_critic():
    scores = grpo.main(steps=5, prompts_per_step=4, samples_per_prompt=8)
    assert scores[-1] > scores[0]


def test_a_classifier_is_a_reward():
    first, last = reward_model.main(steps=12)
    assert last > first


def test_a_classifier_does_not_see_the_padding():
    score = reward_model.reward_of(reward_model.make_classifier(50))
    short, long = ([3, 4], [5]), ([3, 4, 6], [7, 8, 9])
    samples = [reward.ppo.Sample("", "", *ids, {}, False) for ids in (short, long)]
    assert torch.allclose(score(samples)[:1], score(samples[:1]), atol=1e-5)


def test_one_process_is_enough_for_the_example_of_several(capsys):
    before, after = (several_processes.main(steps=steps, prompts_per_step=32) for steps in (0, 3))
    assert after > before + 0.3
    assert f"1 processes, mean score {after:.4f}" in capsys.readouterr().out


def test_the_trl_script_runs_with_another_import():
    history = from_trl.main(epochs=1, batch_size=8)
    assert history[0]["objective/kl"] == pytest.approx(0, abs=1e-3)  # nothing has moved yet
    assert -1 <= history[0]["ppo/mean_scores"] < 0


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_from_the_command_line(path):
    command = [sys.executable, "-m", f"examples.{path.stem}"]
    if path.stem == "several_processes":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.stem != "several_processes" or "2 processes" in done.stdout
    if path.stem == "environment":
        shares = re.findall(r"seed \d: (\d+)% in the first step, (\d+)% in the last five", done.stdout)
        assert len(shares) == 3
        assert all(int(first) <= 5 and int(last) >= 80 for first, last in shares), done.stdout


def test_an_own_estimator_and_an_own_loss_learn():
    for example in (own_advantage, own_loss):
        scores = example.main(steps=8, prompts_per_step=4, samples_per_prompt=8)
        assert sum(scores[-2:]) / 2 > scores[0] + 0.1, example.__name__


def test_an_own_critic_explains_returns():
    explained = own_critic.main(steps=8, prompts_per_step=32)
    assert max(explained[-3:]) > explained[0] + 0.05


def test_a_tool_s_tokens_are_read_and_not_trained_on():
    scores = own_sampler.main(steps=6, prompts_per_step=32)
    assert max(scores[-2:]) > scores[0] + 0.1


def test_a_tool_is_learned():
    """Twenty steps are enough to see it begin; its command learns it, from three seeds."""
    shares = environment.main(steps=20)
    assert max(shares[:3]) <= 0.05
    assert max(shares[-3:]) >= 0.1


def test_an_engine_that_lags_behind_is_corrected():
    history = foreign_engine.main(steps=4, prompts_per_step=32)
    assert [metrics["sampler/staleness"] for metrics in history] == [0, 4, 0, 4]
    fresh, stale = history[2], history[3]
    assert 0 < fresh["sampler/k3"] < 0.005 < stale["sampler/k3"]  # bfloat16 alone, and four updates
    assert stale["sampler/ratio_max"] > 1.2 > fresh["sampler/ratio_max"]
    assert max(metrics["score/mean"] for metrics in history[2:]) > history[0]["score/mean"]


def test_an_own_logger_sees_every_step(capsys):
    best = own_log.main(steps=3, prompts_per_step=8)
    assert capsys.readouterr().out.startswith("step 0, ")
    assert 0 < best.score < 1
    assert best.score == pytest.approx(best.text.count("e") / len(best.text))
