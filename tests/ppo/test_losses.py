"""The clipped losses equal plain loops, the clip cuts gradients where it should, and parts of a minibatch add up."""

import math

import pytest
import torch

from ppo.losses import explained_variance, ratio_statistics, value_loss
from ppo.policy_losses import policy_loss


def numbers(seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([6, 2, 4, 1])[:, None]
    draw = lambda scale: torch.randn(4, 6, generator=g, dtype=torch.float64) * scale  # noqa: E731
    return -draw(1.0).abs(), -draw(1.0).abs(), draw(1.0), mask


def test_policy_loss_is_its_definition():
    new, old, advantages, mask = numbers()
    loss, statistics = policy_loss(new, old, advantages, mask, clip=0.2, num_tokens=int(mask.sum()))
    total, clipped, kl, ratios, count = 0.0, 0, 0.0, 0.0, 0
    for b in range(4):
        for t in range(6):
            if not mask[b, t]:
                continue
            d = float(new[b, t] - old[b, t])
            ratio, a = math.exp(d), float(advantages[b, t])
            bounded = min(max(ratio, 0.8), 1.2)
            total += max(-a * ratio, -a * bounded)
            clipped += (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
            kl += ratio - 1 - d
            ratios += ratio
            count += 1
    assert float(loss) == pytest.approx(total / count, abs=1e-12)
    assert float(statistics["clip_fraction"]) == pytest.approx(clipped / count)
    brakes = ratio_statistics(new, old, mask, num_tokens=count)
    assert float(brakes["policy/approx_kl"]) == pytest.approx(kl / count)
    assert float(brakes["policy/ratio"]) == pytest.approx(ratios / count)


def test_a_clipped_token_has_no_gradient():
    new = torch.tensor([[math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5)]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, statistics = policy_loss(new, torch.zeros(1, 4), advantages, mask, clip=0.2, num_tokens=4)
    loss.backward()
    assert [g != 0 for g in new.grad[0].tolist()] == [False, True, True, False]
    assert float(statistics["clip_fraction"]) == 0.5


def test_padding_changes_no_loss():
    new, old, advantages, mask = numbers()
    loss, _ = policy_loss(new, old, advantages, mask, clip=0.2, num_tokens=13)
    wild = torch.where(mask, new, torch.tensor(50.0, dtype=torch.float64))
    assert torch.equal(policy_loss(wild, old, advantages, mask, clip=0.2, num_tokens=13)[0], loss)


def test_value_loss_is_its_definition():
    values, old, returns, mask = numbers(3)
    for clip in (0.2, None):
        loss, statistics = value_loss(values, old, returns, mask, clip=clip, num_tokens=int(mask.sum()))
        total, cut = 0.0, 0
        for b in range(4):
            for t in range(6):
                if mask[b, t]:
                    v, o, r = float(values[b, t]), float(old[b, t]), float(returns[b, t])
                    plain = (v - r) ** 2
                    bounded = plain if clip is None else (o + min(max(v - o, -clip), clip) - r) ** 2
                    total += max(plain, bounded)
                    cut += bounded > plain
        count = int(mask.sum())
        assert float(loss) == pytest.approx(0.5 * total / count, abs=1e-12)
        assert float(statistics["clip_fraction"]) == pytest.approx(cut / count)


def test_parts_of_a_minibatch_add_up():
    new, old, advantages, mask = numbers()
    n = int(mask.sum())
    whole, stats = policy_loss(new, old, advantages, mask, clip=0.2, num_tokens=n)
    parts = [policy_loss(new[i : i + 1], old[i : i + 1], advantages[i : i + 1], mask[i : i + 1], clip=0.2, num_tokens=n)
             for i in range(4)]  # fmt: skip
    assert float(sum(p[0] for p in parts)) == pytest.approx(float(whole), abs=1e-12)
    assert float(sum(p[1]["clip_fraction"] for p in parts)) == pytest.approx(float(stats["clip_fraction"]), abs=1e-6)
    brakes, *of_rows = (
        ratio_statistics(new[rows], old[rows], mask[rows], num_tokens=n)
        for rows in (slice(None), *(slice(i, i + 1) for i in range(4)))
    )
    for name, number in brakes.items():
        assert float(sum(row[name] for row in of_rows)) == pytest.approx(float(number), abs=1e-12)


def test_explained_variance():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, 50.0]])
    assert explained_variance(returns.clone(), returns, mask) == 1.0
    assert explained_variance(torch.full((1, 4), 2.0), returns, mask) == 0.0
    assert explained_variance(torch.tensor([[1.5, 2.0, 2.5, 0.0]]), returns, mask) == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones(1, 4), mask) == 0.0
