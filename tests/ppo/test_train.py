"""A whole training: the files that it writes, its progress bar, its times, and the arguments that it refuses."""

import json
import time

import pytest

from ppo import Trainer
from tests.fakes import VOCAB, Letters, tiny_gpt2
from tests.ppo.test_trainer import PROMPTS, SMALL, id_mean, make


def test_files_of_a_run(tmp_path):
    trainer = Trainer(
        tiny_gpt2(), ["ab", {"prompt": "c", "extra": 1}], lambda s: [len(x.text) + x.row.get("extra", 0) for x in s],
        SMALL, tokenizer=Letters(), out=tmp_path,
    )  # fmt: skip
    seen = []

    def stop(metrics):
        seen.append(metrics["score/mean"])
        return metrics["probe/step"] == 2

    trainer.train(3, probe=lambda t: {"probe/step": t.step}, stop_when=stop, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert [line["score/mean"] for line in lines] == seen
    assert [line["probe/step"] for line in lines] == [1, 2]
    assert all("/" in name for line in lines for name in line if name != "step")
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples[0].keys() == {"step", "prompt", "response", "score"}


def test_the_progress_bar_keeps_the_last_value_of_metrics_that_are_measured_seldom(capsys):
    trainer = make(SMALL)
    trainer.train(
        2,
        probe=lambda t: {"probe/step": float(t.step)} if t.step == 1 else {},
        show={"seen": "probe/step", "no": "x/y"},
    )
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert "2/2" in last
    assert "seen=1.000" in last
    assert "no=" not in last
    trainer.train(1, show={"seen": "probe/step"}, known={"probe/step": 7.0})
    assert "seen=7.000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "must be a non-empty list"),
        (
            {"prompts": [[2] * 45]},
            "prompt 0 has 45 tokens; with response_length=6 that exceeds the model's context of 48",
        ),
        ({"prompts": [[2, VOCAB]]}, "outside the model's vocabulary of 23"),
        ({"prompts": ["ab"]}, "prompt 0 is a string, which needs a tokenizer"),
        ({"config": SMALL.replace(retain_coef=0.1)}, "needs texts: pass retain="),
        ({"config": SMALL.replace(retain_coef=0.1), "retain": [[4]]}, "none of the 1 retain texts has two tokens"),
        ({"model": "/nonexistent/model"}, "model='/nonexistent/model' cannot be loaded as a causal LM"),
        ({"model": tiny_gpt2().transformer}, "no causal LM"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused_before_any_work(arguments, message):
    given = {"model": tiny_gpt2(), "prompts": PROMPTS, "reward": id_mean, "config": SMALL} | arguments
    with pytest.raises(ValueError, match=message):
        Trainer(**given)


def test_the_parts_of_a_step_have_their_own_times():
    """The parts follow one another, so together they take no longer than the rollout."""
    trainer = make(SMALL.replace(value_head="critic", kl_coef=0.0))
    started = time.perf_counter()
    rollout = trainer.rollout()
    passed = time.perf_counter() - started
    times = {name: value for name, value in rollout.metrics.items() if name.startswith("time/")}
    assert times.keys() == {f"time/{part}_s" for part in ("rollout", "reward", "old_policy", "waiting", "reference")}
    assert sum(times.values()) <= passed


def test_a_training_that_stops_early_leaves_its_last_step_as_a_checkpoint(tmp_path):
    trainer = make(SMALL.replace(save_every_steps=2), out=tmp_path)
    trainer.train(9, stop_when=lambda metrics: trainer.step == 3, progress=False)
    assert Trainer.resume(tmp_path, PROMPTS, id_mean).step == 3


@pytest.mark.parametrize(
    ("text", "message"), [([2] * 60, "exceeds the model's context of 48"), ([2, 99], "holds the id 99")]
)
def test_retain_texts_that_the_model_cannot_read_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make(SMALL.replace(retain_coef=1.0, retain_tokens=64), retain=[text])
