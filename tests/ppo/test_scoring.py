"""What a reward function may return, and how its numbers are checked, scaled and placed."""

import math

import numpy as np
import pytest
import torch

from ppo.advantages import overlong_charges
from ppo.config import Config
from ppo.scoring import RunningMoments, Scorer, call_reward
from ppo.types import Sample
from tests.fakes import random_rollout

SAMPLES = [Sample("p", "t", [2], ids, {}, True) for ids in ([3, 4, 1], [5], [6, 1])]


@pytest.mark.parametrize("answer", [[1, 2.5, -3], (1, 2.5, -3), torch.tensor([1, 2.5, -3]), np.array([1, 2.5, -3]),
                                    [torch.tensor(1.0), np.float32(2.5), -3]])  # fmt: skip
def test_scores_of_any_number_type(answer):
    scores, per_token = call_reward(lambda samples: answer, SAMPLES)
    assert scores.tolist() == [1.0, 2.5, -3.0]
    assert per_token is None


def test_token_rewards_are_ragged():
    scores, per_token = call_reward(lambda samples: [[1, 2, 3], np.array([4.0]), torch.tensor([5, 6])], SAMPLES)
    assert scores.tolist() == [6, 4, 11]
    assert per_token.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1, 2], "returned 2 values for 3 samples"),
        (5, "returned an int for 3 samples"),
        (None, "returned None for 3 samples"),
        ([1, float("nan"), 2], "the reward of sample 1 is nan: rewards must be finite"),
        ([1, 2, float("inf")], "the reward of sample 2 is inf"),
        ([1, "x", 2], "the reward of sample 1 is 'x', not a number"),
        ([1, None, 2], "the reward of sample 1 is None, not a number"),
        ([[1, 2], [1], [1, 2]], "sample 0 has 3 response tokens but got token rewards"),
        ([[1, 2, 3], [1, 9], [1, 2]], "sample 1 got a token reward after its 1 response tokens"),
        ([[1, 2, 3], 4, [1, 2]], "sample 1 has 1 response tokens but got token rewards 4"),
        ([[1, float("nan"), 3], [4], [1, 2]], "the reward of sample 0, token 1 is nan"),
    ],
)
def test_wrong_answers_name_the_sample(answer, message):
    with pytest.raises(ValueError, match=message):
        call_reward(lambda samples: answer, SAMPLES)


def test_errors_of_the_reward_propagate():
    def broken(samples):
        raise KeyError("suffix")

    with pytest.raises(KeyError, match="suffix"):
        call_reward(broken, SAMPLES)


def test_running_moments_equal_those_of_all_numbers():
    torch.manual_seed(0)
    batches = [torch.randn(n) * 3 + 5 for n in (1, 7, 2, 30)]
    moments = RunningMoments()
    for batch in batches:
        moments.update(batch)
    everything = torch.cat(batches).double()
    assert moments.count == 40
    assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-10)
    assert moments.std == pytest.approx(float(everything.std()), abs=1e-10)


def test_fewer_than_two_different_numbers_scale_nothing():
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.update(torch.tensor([5.0]))
    assert moments.std == 1.0
    moments.update(torch.tensor([5.0]))
    assert moments.std == 1.0
    two = RunningMoments()
    two.update(torch.tensor([5.0, 8.0]))
    assert two.std == pytest.approx(math.sqrt(4.5))


def score_all(config, answer):
    generation = random_rollout([len(s.ids) for s in SAMPLES]).generation
    return Scorer(lambda samples: answer, config)(SAMPLES, generation)


def test_scaling_then_clipping():
    config = Config(scale_scores=True, clip_scores=1.5)
    scores, token_rewards = score_all(config, [0.0, 10.0, 5.0])
    assert scores.tolist() == [0, 10, 5]
    assert token_rewards.tolist() == [[0, 0, 0], [1.5, 0, 0], [0, 1, 0]]  # std is 5


def test_token_rewards_are_scaled_by_their_own_moments():
    config = Config(scale_scores=True)
    _, token_rewards = score_all(config, [[0.0, 2.0, 0.0], [2.0], [2.0, 0.0]])
    std = torch.tensor([0.0, 2, 0, 2, 2, 0]).std()  # without padding
    assert torch.allclose(token_rewards, torch.tensor([[0.0, 2, 0], [2, 0, 0], [2, 0, 0]]) / std)


def test_overlong_responses_are_charged_in_proportion():
    """DAPO, eq. 13: nothing before the last tokens, the whole penalty at the greatest length."""
    lengths = torch.tensor([1, 16, 17, 18, 20])
    charges = overlong_charges(lengths, response_length=20, buffer_tokens=4, penalty=1.0)
    assert charges.tolist() == [0, 0, 0.25, 0.5, 1]
    assert overlong_charges(lengths, response_length=20, buffer_tokens=1, penalty=3.0).tolist() == [0, 0, 0, 0, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlong_penalty": 1.0}, "overlong_tokens=0 goes with overlong_penalty=1.0"),
        ({"overlong_tokens": 3}, "overlong_tokens=3 goes with overlong_penalty=0.0"),
        ({"overlong_penalty": 1.0, "overlong_tokens": 51}, "overlong_tokens=51 must not exceed response_length=50"),
        ({"overlong_penalty": -1.0}, "overlong_penalty=-1.0 must be at least 0"),
    ],
)
def test_overlong_knobs_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_a_number_beyond_a_float_is_named():
    with pytest.raises(ValueError, match=r"sample 0 is 1000.* too large for a float"):
        call_reward(lambda _: [10**400, 1.0, 1.0], SAMPLES)
    with pytest.raises(ValueError, match=r"sample 1 is 1e\+39, too large for float32"):
        Scorer(lambda _: [1.0, 1e39, 1.0], Config()).ask(SAMPLES)
    assert float(Scorer(lambda _: [1.0, 1e39, 1.0], Config(), dtype=torch.float64).ask(SAMPLES)[0][1]) == 1e39


def test_a_column_of_logits_is_named():
    for answer in (torch.ones(3, 1), np.ones((3, 1))):
        with pytest.raises(ValueError, match=r"the shape \(3, 1\): scores are \[B\]"):
            call_reward(lambda _, answer=answer: answer, SAMPLES)


def test_equal_numbers_scale_nothing_however_they_are_summed():
    for value in (0.7, 0.1, 12345.678):
        moments = RunningMoments()
        for _ in range(3):
            moments.update(torch.full((7,), value))
            moments.update(torch.full((3,), value, dtype=torch.float64))
        assert moments.divisor == 1.0
    moments.update(torch.tensor([1.0]))
    assert moments.divisor > 1
