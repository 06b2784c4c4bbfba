"""Reward shaping, GAE, whitening and group-relative advantages against float64 loops and closed forms."""

import math

import pytest
import torch

from ppo.advantages import gae, group_relative, place_scores, shape_rewards, whiten


def ragged(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def naive_gae(rewards, values, length, gamma, lam):
    """The definition as a forward sum: A_t = sum over l of (gamma lam)^l delta_{t+l}."""
    deltas = []
    for t in range(length):
        after = values[t + 1] if t + 1 < length else 0.0
        deltas.append(rewards[t] + gamma * after - values[t])
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, length)) for t in range(length)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_its_definition(gamma, lam):
    torch.manual_seed(1)
    lengths, width = [5, 1, 7, 3], 7
    mask = ragged(lengths, width)
    rewards, values = torch.randn(4, width).double() * mask, torch.randn(4, width).double() * mask
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for b, length in enumerate(lengths):
        expected = naive_gae(rewards[b].tolist(), values[b].tolist(), length, gamma, lam)
        assert advantages[b, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[b, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values[b].tolist(), strict=False)], abs=1e-12
        )
        assert not advantages[b, length:].any()
        assert not returns[b, length:].any()


def test_gae_does_not_read_values_after_the_last_token():
    mask = ragged([2], 4)
    values = torch.tensor([[0.5, 0.25, 99.0, -99.0]])
    clean = values * mask
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    assert torch.equal(gae(rewards, values, mask, gamma=1, lam=0.9)[0], gae(rewards, clean, mask, gamma=1, lam=0.9)[0])


def test_lambda_one_gives_reward_to_go():
    mask = ragged([3], 3)
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    advantages, returns = gae(rewards, torch.full((1, 3), 0.5), mask, gamma=1, lam=1)
    assert advantages.tolist() == [[0.5, 0.5, 0.5]]
    assert returns.tolist() == [[1.0, 1.0, 1.0]]


def test_whiten_matches_the_published_span():
    x = torch.tensor([[1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]])
    kept = whiten(x, torch.ones_like(x, dtype=torch.bool), shift_mean=False)
    assert kept.min().item() == pytest.approx(0.0508, abs=1e-4)
    assert kept.max().item() == pytest.approx(3.1492, abs=1e-4)


def test_whiten_counts_real_tokens_only():
    mask = ragged([3, 1], 3)
    x = torch.tensor([[1.0, 2.0, 6.0], [3.0, 1e6, -1e6]])
    real = [1.0, 2.0, 6.0, 3.0]
    mean = sum(real) / 4
    std = math.sqrt(sum((r - mean) ** 2 for r in real) / 4)
    expected = torch.tensor([[(r - mean) / std for r in real[:3]], [(3.0 - mean) / std, 0, 0]])
    assert torch.allclose(whiten(x, mask), expected, atol=1e-5)


def test_whiten_of_one_token_is_finite():
    assert whiten(torch.tensor([[4.0]]), torch.tensor([[True]])).tolist() == [[0.0]]


def test_score_lands_on_the_last_real_token():
    mask = ragged([3, 1, 4], 4)
    placed = place_scores(torch.tensor([7.0, 8.0, 9.0]), mask)
    assert placed.tolist() == [[0, 0, 7, 0], [8, 0, 0, 0], [0, 0, 0, 9]]


def test_a_score_for_a_sequence_without_tokens_is_refused():
    with pytest.raises(ValueError, match="sequence 1 has no response token"):
        place_scores(torch.ones(2), ragged([2, 0], 2))


def test_shape_rewards_subtracts_kl_on_every_real_token():
    mask = ragged([2], 3)
    shaped = shape_rewards(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, -0.25, 9.0]]), mask, kl_coef=0.2)
    assert torch.allclose(shaped, torch.tensor([[-0.1, 1.05, 0.0]]))


def test_rloo_compares_with_the_others():
    advantages = group_relative(
        torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), ragged([2] * 6, 2), group_size=3, estimator="rloo"
    )
    assert advantages[:, 0].tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])


def test_grpo_scales_by_the_group():
    advantages = group_relative(torch.tensor([1.0, 3.0]), ragged([2, 1], 2), group_size=2, estimator="grpo")
    assert advantages.tolist() == [
        [pytest.approx(-1, abs=2e-4), pytest.approx(-1, abs=2e-4)],
        [pytest.approx(1, abs=2e-4), 0.0],
    ]


def test_groups_must_be_whole():
    with pytest.raises(ValueError, match="5 sequences do not form groups of 2"):
        group_relative(torch.ones(5), ragged([1] * 5, 1), group_size=2, estimator="rloo")
