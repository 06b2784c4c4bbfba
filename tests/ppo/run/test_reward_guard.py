"""A reward that raises, hangs, answers wrongly or changes its input: the error is clear, and the run can be resumed."""

import time

import pytest
import torch

from ppo import Trainer
from tests.ppo.run.small import PROMPTS, SMALL, id_mean, make, weights


def then(first, *, steps, after):
    """A reward that is ``first`` for some steps and ``after`` from then on."""
    calls = []

    def reward(samples):
        calls.append(1)
        return (first if len(calls) <= steps else after)(samples)

    return reward


def raises(samples):
    raise KeyError("suffix")


def hangs(samples):
    time.sleep(60)


@pytest.mark.parametrize(
    ("reward", "kind", "message"),
    [
        (raises, KeyError, "suffix"),
        (hangs, TimeoutError, "took more than reward_timeout_seconds=2"),
        (lambda samples: [1.0] * 7 + [float("nan")], ValueError, "the reward of sample 7 is nan"),
        (lambda samples: [1.0] * 7, ValueError, "returned 7 values for 8 samples"),
        (lambda samples: None, ValueError, "returned None for 8 samples"),
        (lambda samples: "abcdefgh", ValueError, "the reward of sample 0 is 'a', not a number"),
    ],
)
def test_a_reward_that_fails_names_step_and_rows_and_the_run_goes_on_later(tmp_path, reward, kind, message):
    unbroken = make(out=tmp_path / "unbroken")
    unbroken.train(3, progress=False)
    config = SMALL.replace(reward_timeout_seconds=2.0)
    trainer = make(config, reward=then(id_mean, steps=2, after=reward), out=tmp_path / "run")
    started = time.perf_counter()
    with pytest.raises(kind, match=message) as caught:
        trainer.train(3, progress=False)
    assert time.perf_counter() - started < 10
    (note,) = caught.value.__notes__
    assert "in step 2, when the reward was asked about 8 responses to the prompts [" in note
    resumed = Trainer.resume(tmp_path / "run", PROMPTS, id_mean, out=tmp_path / "run")
    resumed.train(3 - resumed.step, progress=False)
    assert torch.equal(weights(resumed), weights(unbroken))


def test_a_timeout_that_is_kept_changes_no_result(tmp_path):
    def graded(samples):
        assert not torch.is_grad_enabled()  # as without a timeout: the thread has the caller's settings
        return [float(torch.rand(())) for _ in samples]

    ends = []
    for seconds in (None, 30.0):
        torch.manual_seed(3)
        trainer = make(SMALL.replace(reward_timeout_seconds=seconds), reward=graded)
        trainer.train(2, progress=False)
        ends.append(weights(trainer))
    assert torch.equal(*ends)


def test_a_reward_that_writes_into_what_it_is_given_changes_nothing():
    def vandal(samples):
        scores = id_mean(samples)
        for sample in samples:
            sample.ids.clear()
            sample.prompt_ids.append(9)
            sample.row["prompt"] = [1]
            sample.row["more"]["deep"].append("x")
        samples.clear()
        return scores

    def rows():
        return [{"prompt": ids, "more": {"deep": []}} for ids in PROMPTS]

    plain, spoiled, given = make(prompts=rows()), None, rows()
    plain.train(2, progress=False)
    spoiled = make(prompts=given, reward=vandal)
    rollout = spoiled.rollout()
    assert len(rollout.samples) == 8
    spoiled.update(rollout)
    spoiled.train(1, progress=False)
    assert torch.equal(weights(plain), weights(spoiled))
    assert given == rows()
