"""The best step by a metric is kept whole beside the numbered checkpoints, and a resumed run goes on comparing."""

import json
import math
import shutil

import pytest
import torch

from ppo import Config, Trainer
from ppo.checkpoint import folder as files
from ppo.checkpoint.best import Best
from ppo.checkpoint.folder import read_state
from ppo.log import read_jsonl
from tests.ppo.run.small import PROMPTS, make, weights

BY_SCORE = Config(
    prompts_per_step=8, minibatch=4, response_length=6, learning_rate=1e-2, best_metric="score/mean",
    save_every_steps=2, keep_checkpoints=1,
)  # fmt: skip
SCORES = [1.0, 3.0, 2.0, 5.0, 5.0, 4.0]


class Scripted:
    """A reward that gives each step the score of a list."""

    def __init__(self, start=0):
        self.step = start

    def __call__(self, samples):
        self.step += 1
        return [SCORES[self.step - 1]] * len(samples)


def trained(out, steps=6, *, config=BY_SCORE, **arguments):
    trainer = make(config, reward=Scripted(), out=out)
    trainer.train(steps, progress=False, **arguments)
    return trainer


def test_the_best_step_is_kept_and_written_about(tmp_path):
    trained(tmp_path)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["best/value"] for line in lines] == [1, 3, 3, 5, 5, 5]
    assert [line["best/step"] for line in lines] == [0, 1, 1, 3, 3, 3]
    _, state = read_state(tmp_path / "best")
    assert (state["step"], state["best"]) == (4, {"value": 5.0, "step": 3})  # four steps are done after step 3
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000006"]  # it does not count among these


def test_smaller_may_be_better(tmp_path):
    trained(tmp_path, config=BY_SCORE.replace(best_is="min"))
    assert read_state(tmp_path / "best")[1]["best"] == {"value": 1.0, "step": 0}


def test_it_holds_the_weights_of_its_step_and_goes_on_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole")
    resumed = Trainer.resume(tmp_path / "whole" / "best", PROMPTS, Scripted(4), out=tmp_path / "more")
    assert torch.equal(weights(resumed), weights(trained(tmp_path / "short", steps=4)))
    resumed.train(2, progress=False)
    assert torch.equal(weights(resumed), weights(whole))
    assert [line["best/step"] for line in read_jsonl(tmp_path / "more" / "metrics.jsonl")] == [3, 3]
    assert not (tmp_path / "more" / "best").exists()  # 5 and 4 are no better than the 5 of the checkpoint


def test_a_resumed_run_goes_on_comparing(tmp_path):
    trained(tmp_path, steps=2)
    resumed = Trainer.resume(tmp_path, PROMPTS, Scripted(2), out=tmp_path)
    resumed.train(1, progress=False)
    assert read_state(tmp_path / "best")[1]["best"]["step"] == 1  # 2 is less than 3
    resumed.train(1, progress=False)
    assert read_state(tmp_path / "best")[1]["best"]["step"] == 3


def test_a_run_without_numbered_checkpoints_goes_on_from_its_best(tmp_path):
    trained(tmp_path, config=BY_SCORE.replace(save_every_steps=0))
    resumed = Trainer.resume(tmp_path, PROMPTS, Scripted(4), out=tmp_path)
    assert (resumed.step, resumed.last_checkpoint) == (4, tmp_path / "best")
    with pytest.raises(ValueError, match=r"holds another run: resume it with Trainer.resume"):
        make(BY_SCORE, out=tmp_path).train(1, progress=False)
    shutil.move(tmp_path / "best", tmp_path / "best.old")  # killed between two renames
    assert Trainer.resume(tmp_path, PROMPTS, Scripted(4)).step == 4


class Killed(BaseException):
    """In place of SIGKILL: no handler of the library catches it."""


class Mortal:
    """Ends the program at the call after ``left`` others of the functions that it watches."""

    left = math.inf

    def watch(self, patch, owner, name, function=None):
        function = function or getattr(owner, name)

        def call(*arguments, **named):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return function(*arguments, **named)

        patch.setattr(owner, name, call)


def test_the_old_one_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    """Killed at any call that touches a file: what is read afterwards is the old best or the new one, whole."""
    trainer = trained(tmp_path / "run", steps=2)
    trainer.state.best.take(5.0, 2)
    trainer.state.counters.step = 3
    mortal, steps, out = Mortal(), set(), tmp_path / "killed"
    for name in ("flush", "sha256"):
        mortal.watch(monkeypatch, files, name, (lambda path: None) if name == "flush" else None)
    mortal.watch(monkeypatch, files.os, "replace")
    mortal.watch(monkeypatch, files.shutil, "rmtree")
    is_done = False
    while not is_done:
        mortal.left, calls = math.inf, len(steps)
        shutil.copytree(tmp_path / "run" / "best", out / "best")
        mortal.left = calls
        try:
            trainer.state.save(out / "best")
            is_done = True
        except Killed:
            pass
        mortal.left = math.inf
        steps.add((calls, read_state(out / "best")[1]["step"]))
        shutil.rmtree(out)
    assert len(steps) > 10
    assert {step for _, step in steps} == {2, 3}


def test_an_older_checkpoint_has_no_best_and_begins_anew(tmp_path):
    trained(tmp_path, steps=2)
    state = tmp_path / "checkpoints" / "step-000002" / "state.json"
    content = json.loads(state.read_text())
    del content["best"]
    content["config"] = {k: v for k, v in content["config"].items() if not k.startswith(("best", "eval"))}
    content["state_sha256"] = files.state_sha256(content)
    state.write_text(json.dumps(content))
    resumed = Trainer.resume(tmp_path, PROMPTS, Scripted(2))
    assert resumed.state.best is None
    assert resumed.config.eval_every_steps == 0
    assert "best" not in resumed.state.numbers()


@pytest.mark.parametrize("best", [3, {"value": 1.0}, {"value": None, "step": 3}, {"value": math.nan, "step": 3}])
def test_a_damaged_best_is_named(tmp_path, best):
    trained(tmp_path, steps=2)
    state = tmp_path / "checkpoints" / "step-000002" / "state.json"
    content = json.loads(state.read_text()) | {"best": best}
    content["state_sha256"] = files.state_sha256(content)
    state.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is damaged: best is"):
        Trainer.resume(tmp_path, PROMPTS, Scripted(2))


def test_without_a_metric_nothing_is_kept(tmp_path):
    trained(tmp_path, steps=2, config=BY_SCORE.replace(best_metric=None))
    assert not (tmp_path / "best").exists()
    assert "best/value" not in read_jsonl(tmp_path / "metrics.jsonl")[-1]


def test_an_unknown_metric_is_named_after_one_step(tmp_path):
    with pytest.raises(ValueError, match="best_metric='score/meen' is no metric of a step; near: score/mean") as caught:
        trained(tmp_path, config=BY_SCORE.replace(best_metric="score/meen"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "metrics.jsonl").exists()  # the folder can be used again


def test_a_probe_may_give_the_metric_in_some_steps(tmp_path):
    def probe(trainer):
        return {"own/value": 1.0} if trainer.step == 2 else {}

    config = BY_SCORE.replace(best_metric="own/value")
    trained(tmp_path / "some", steps=3, config=config, probe=probe)
    assert read_state(tmp_path / "some" / "best")[1]["best"] == {"value": 1.0, "step": 1}
    with pytest.warns(RuntimeWarning, match="best_metric='own/value' was a metric of no step"):
        trained(tmp_path / "none", steps=2, config=config, probe=lambda trainer: {})


@pytest.mark.parametrize("is_max", [True, False])
def test_what_is_better(is_max):
    best, sign = Best("m", is_max), 1 if is_max else -1
    values = [math.nan, math.inf, -math.inf, None, 0.0, sign * 1.0, sign * 1.0, sign * 0.5, math.nan, sign * 2]
    assert [best.take(value, step) for step, value in enumerate(values)] == [False] * 4 + [True] * 2 + [False] * 3 + [
        True
    ]
    assert best.numbers() == {"value": sign * 2.0, "step": 9}
