"""The bounded reference against its formula in plain float64."""

import math

import pytest
import torch

from rewards.bounded import LEAST_CHANCE, bounded_logprobs

V, END = 7, 6


def by_hand(logits, truth, chance):
    p = [math.exp(x) for x in torch.log_softmax(logits.double(), dim=-1).tolist()]
    b = min(max(chance, LEAST_CHANCE), p[truth])
    end = p[END] if truth != END else 0.0
    left = 1 - p[truth] - (p[END] if truth != END else 0.0)
    q = [x * (1 - b - end) / left for x in p]
    if truth != END:
        q[END] = end
    q[truth] = b
    return q


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("truth", [0, END])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_the_formula(seed, truth, scale):
    logits = scale * torch.randn(3, V, generator=torch.Generator().manual_seed(seed))
    logits[0, truth] = 12.0  # memorised
    chance = torch.tensor([0.2, 0.05, 0.9])
    found = bounded_logprobs(logits, torch.full((3,), truth), chance, end_ids=[END, 99]).exp()
    for row in range(3):
        wanted = torch.tensor(by_hand(logits[row], truth, float(chance[row])), dtype=torch.float64)
        assert torch.allclose(found[row].double(), wanted, atol=1e-6)
    assert torch.allclose(found.sum(dim=1), torch.ones(3), atol=1e-5)


def test_a_token_that_the_original_finds_unlikely_is_left_alone():
    logits = torch.tensor([[0.0, 0.0, 0.0, -3.0, 0.0, 0.0, -9.0]])
    found = bounded_logprobs(logits, torch.tensor([3]), torch.tensor([0.5]), end_ids=[END])
    assert torch.allclose(found, torch.log_softmax(logits, dim=-1), atol=1e-6)


def test_nothing_is_infinite_where_the_original_is_certain():
    logits = torch.full((1, V), -80.0)
    logits[0, 2] = 80.0
    found = bounded_logprobs(logits, torch.tensor([2]), torch.tensor([0.0]), end_ids=[END])
    assert torch.isfinite(found).all()
    assert math.isclose(float(found[0, 2].exp()), LEAST_CHANCE, rel_tol=1e-4)
    assert float(found[0, END].exp()) < 1e-30
