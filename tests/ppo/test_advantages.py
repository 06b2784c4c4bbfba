"""Reward shaping, GAE, whitening and group-relative advantages against float64 loops and closed forms."""

import math

import pytest
import torch

from ppo import Config
from ppo.advantages import (
    advantage_of,
    decoupled_gae,
    gae,
    group_relative,
    length_adaptive_lambda,
    masked_mean,
    masked_variance,
    place_scores,
    reinforce_plus_plus,
    shape_rewards,
    whiten,
)


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


# ---------------------------------------------------------------------- two lambdas, and one that depends on the length

LENGTHS, WIDTH = [5, 1, 7, 3], 7


def drawn():
    torch.manual_seed(2)
    mask = ragged(LENGTHS, WIDTH)
    return (*(torch.randn(4, WIDTH).double() * mask for _ in range(2)), mask)


def test_the_policy_and_the_critic_have_a_lambda_each():
    rewards, values, mask = drawn()
    advantages, returns = decoupled_gae(rewards, values, mask, gamma=0.9, policy_lambda=0.6, value_lambda=0.8)
    for b, length in enumerate(LENGTHS):
        row = rewards[b].tolist(), values[b].tolist(), length, 0.9
        assert advantages[b, :length].tolist() == pytest.approx(naive_gae(*row, 0.6), abs=1e-12)
        expected = [a + v for a, v in zip(naive_gae(*row, 0.8), row[1], strict=False)]
        assert returns[b, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert not advantages[b, length:].any()
        assert not returns[b, length:].any()


def test_equal_lambdas_are_gae_to_the_bit():
    rewards, values, mask = drawn()
    found = decoupled_gae(rewards, values, mask, gamma=0.9, policy_lambda=0.6, value_lambda=0.6)
    by_row = decoupled_gae(rewards, values, mask, gamma=0.9, policy_lambda=torch.full((4,), 0.6), value_lambda=0.6)
    for x, y, z in zip(found, by_row, gae(rewards, values, mask, gamma=0.9, lam=0.6), strict=True):
        assert torch.equal(x, z)
        torch.testing.assert_close(y, z, rtol=1e-6, atol=1e-6)


def test_a_critic_with_lambda_one_learns_the_whole_return():
    rewards, values, mask = drawn()
    _, returns = decoupled_gae(rewards, values, mask, gamma=1.0, policy_lambda=0.3, value_lambda=1.0)
    for b, length in enumerate(LENGTHS):
        expected = [sum(rewards[b, t:length].tolist()) for t in range(length)]
        assert returns[b, :length].tolist() == pytest.approx(expected, abs=1e-12)


def test_lambda_grows_with_the_length_and_is_never_negative():
    found = length_adaptive_lambda(ragged([100, 20, 10, 1], 100), alpha=0.05)
    assert found.tolist() == pytest.approx([1 - 1 / 5, 0.0, 0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("value_lambda", [None, 1.0, 0.4])
def test_the_length_adaptive_estimator_is_its_definition(value_lambda):
    rewards, values, mask = drawn()
    config = Config(gae_length_alpha=0.5, value_gae_lambda=value_lambda, gamma=0.9, whiten_advantages=False)
    advantages, returns = advantage_of(config)(rewards, values, mask, [])
    for b, length in enumerate(LENGTHS):
        row = rewards[b].tolist(), values[b].tolist(), length, 0.9
        expected = naive_gae(*row, max(0.0, 1 - 1 / (0.5 * length)))
        assert advantages[b, :length].tolist() == pytest.approx(expected, abs=1e-12)
        critic = naive_gae(*row, 0.95 if value_lambda is None else value_lambda)
        assert returns[b, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(critic, row[1], strict=False)], abs=1e-12
        )


def test_an_alpha_without_bound_is_monte_carlo():
    rewards, values, mask = drawn()
    config = Config(gae_length_alpha=1e12, gamma=0.9, whiten_advantages=False)
    found, _ = advantage_of(config)(rewards, values, mask, [])
    expected, _ = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------- without a critic

ESTIMATORS = {"grpo": 3, "dr_grpo": 3, "rloo": 3, "reinforce++": 1, "reinforce++_baseline": 3}


def estimate(name, rewards, mask):
    size = ESTIMATORS[name]
    config = Config(advantage=name, samples_per_prompt=size, prompts_per_step=len(mask), minibatch=len(mask))
    advantages, returns = advantage_of(config)(rewards, torch.zeros_like(rewards), mask, [])
    assert not returns.any()
    assert not advantages[~mask].any()
    return advantages


def with_holes(rows, width):
    """Rewards and action masks of several rows, drawn at random."""
    torch.manual_seed(3)
    mask = torch.rand(rows, width) < 0.6
    mask[:, 2] = True
    return torch.randn(rows, width).double() * mask, mask


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_without_a_critic_are_plain_loops(name):
    rewards, mask = with_holes(6, 5)
    totals = [sum(x for x, is_action in zip(*row, strict=True) if is_action)
              for row in zip(rewards.tolist(), mask.tolist(), strict=True)]  # fmt: skip
    expected = []
    for b, total in enumerate(totals):
        group = totals[b // 3 * 3 : b // 3 * 3 + 3]
        mean = sum(group) / 3
        std = math.sqrt(sum((x - mean) ** 2 for x in group) / 3)
        others = (sum(group) - total) / 2
        of = {"grpo": (total - mean) / (std + 1e-4), "rloo": total - others, "reinforce++": total}
        expected.append(of.get(name, total - mean))
    if name.startswith("reinforce++"):
        actions = [x for x, row in zip(expected, mask.tolist(), strict=True) for is_action in row if is_action]
        mean = sum(actions) / len(actions)
        scale = math.sqrt(sum((x - mean) ** 2 for x in actions) / len(actions) + 1e-8)
        expected = [(x - mean) / scale for x in expected]
    found = estimate(name, rewards, mask)
    for row, is_action, value in zip(found, mask, expected, strict=True):
        assert row[is_action].tolist() == pytest.approx([value] * int(is_action.sum()), abs=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_holes_are_as_if_cut_out(name):
    rewards, mask = with_holes(6, 5)
    found = estimate(name, rewards, mask)
    counts = mask.sum(dim=1).tolist()
    dense = ragged(counts, 5)
    cut = torch.zeros_like(rewards)
    cut[dense] = rewards[mask]
    torch.testing.assert_close(found[mask], estimate(name, cut, dense)[dense], rtol=0, atol=1e-9)


VALUES = [0.1, 0.7, -0.3, 1 / 3, 12345.678, 1e6, 3e-7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_equal_rewards_are_no_advantage(name, value, dtype):
    for rows in (6, 21):
        _, mask = with_holes(rows, 5)
        assert not estimate(name, place_scores(torch.full((rows,), value, dtype=dtype), mask), mask).any()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rewards_that_are_equal_but_for_rounding_are_no_advantage(name):
    """0.7, the float after it, and 0.7 as a sum of token rewards of both signs."""
    mask = torch.ones(6, 5, dtype=torch.bool)
    rewards = place_scores(torch.full((6,), 0.7), mask)
    rewards[1, -1] = torch.nextafter(rewards[1, -1], torch.tensor(1.0))
    rewards[2] = torch.tensor([0.1, 0.2, -0.1, 0.3, 0.2])
    rewards[4] = torch.tensor([40.1, -40.0, 0.1, 0.3, 0.2])
    assert len(set(rewards.sum(dim=1).tolist())) > 2
    assert not estimate(name, rewards, mask).any()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rewards_that_differ_a_little_are_advantages(name):
    for base, step in ((1e6, 1.0), (0.7, 1e-6), (0.0, 1e-9)):
        mask = torch.ones(3, 1, dtype=torch.bool)
        rewards = torch.full((3, 1), base)
        rewards[1] += step
        found = estimate(name, rewards, mask)[:, 0]
        assert found[1] > 0 > found[0] == found[2]


def test_a_group_of_equal_rewards_is_0_beside_one_that_differs():
    mask = torch.ones(6, 2, dtype=torch.bool)
    totals = torch.tensor([0.7, 0.7, 0.7, 1.0, 2.0, 6.0])
    for name in ("grpo", "dr_grpo", "rloo"):
        found = group_relative(totals, mask, group_size=3, estimator=name)
        assert not found[:3].any()
        assert torch.equal(found[3:], group_relative(totals[3:], mask[3:], group_size=3, estimator=name))


@pytest.mark.parametrize("value", VALUES)
def test_equal_numbers_whiten_to_0_or_to_their_mean(value):
    mask = ragged([3, 1, 4, 2], 4)
    x = torch.full((4, 4), value).masked_fill(~mask, 1e9)
    assert not whiten(x, mask).any()
    kept = whiten(x, mask, shift_mean=False)
    assert not kept[~mask].any()
    assert kept[mask].tolist() == pytest.approx([value] * 10, rel=1e-6)
    assert len(set(kept[mask].tolist())) == 1


def test_equal_rewards_of_one_token_are_no_advantage_under_gae():
    mask = torch.ones(7, 1, dtype=torch.bool)
    for value in (0.0, 0.3, 0.65):
        rewards, values = torch.full((7, 1), 0.7), torch.full((7, 1), value)
        assert not advantage_of(Config())(rewards, values, mask, [])[0].any()


def test_the_rounding_of_an_advantage_is_that_of_its_reward():
    """A critic that is off by 0.05 everywhere: all advantages are the same difference, of numbers of several sizes."""
    mask = torch.ones(3, 1, dtype=torch.bool)
    rewards, values = torch.tensor([[0.7], [30.05], [0.35]]), torch.tensor([[0.65], [30.0], [0.3]])
    raw, _ = advantage_of(Config(whiten_advantages=False))(rewards, values, mask, [])
    assert float(raw.max() - raw.min()) > 1e-7  # the rounding is there
    assert not advantage_of(Config())(rewards, values, mask, [])[0].any()


def test_dr_grpo_is_grpo_without_its_division():
    rewards, mask = with_holes(6, 5)
    groups = rewards.sum(dim=1).view(2, 3)
    std = groups.std(dim=1, correction=0).repeat_interleave(3).view(-1, 1)
    product = estimate("grpo", rewards, mask) * (std + 1e-4)
    torch.testing.assert_close(product, estimate("dr_grpo", rewards, mask), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["reinforce++", "reinforce++_baseline"])
def test_reinforce_plus_plus_has_mean_0_and_variance_1_over_actions(name):
    rewards, mask = with_holes(6, 5)
    found = estimate(name, rewards, mask)
    assert float(masked_mean(found, mask)) == pytest.approx(0, abs=1e-9)
    assert float(masked_variance(found, mask)) == pytest.approx(1, abs=1e-7)  # whitening adds 1e-8 to the variance


def test_a_baseline_removes_what_a_prompt_is_worth():
    """Prompts of another level change nothing, where the whole step's mean alone would remain."""
    rewards, mask = with_holes(6, 5)
    totals = rewards.sum(dim=1)
    shifted = totals + torch.tensor([0, 0, 0, 9, 9, 9])
    found = reinforce_plus_plus(totals, mask, group_size=3)
    torch.testing.assert_close(reinforce_plus_plus(shifted, mask, group_size=3), found, rtol=0, atol=1e-9)
    assert not torch.allclose(reinforce_plus_plus(shifted, mask), reinforce_plus_plus(totals, mask), atol=0.1)
