"""The sampling distribution and the draw, against plain loops in float64."""

from __future__ import annotations

import pytest
import torch

import ppo.generation.sampling as sampling_module
from ppo import Sampling
from ppo.generation.sampling import draw, filter_logits, uniforms
from tests.ppo.generation.test_generate import naive_filter


def some_logits(rows: int, vocab: int, *, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("vocab", [5, 128, 1000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.5), (2.0, 0, 0.999), (1.5, 4, 0.6), (1.0, 5000, 0.9)],
)
def test_filter_equals_the_plain_loop(vocab: int, temperature: float, top_k: int, top_p: float):
    logits = some_logits(6, vocab)
    before = logits.clone()
    actual = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
    expected = torch.stack([naive_filter(row.double(), temperature, top_k, top_p) for row in logits])
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-6)
    assert torch.equal(logits, before)


def test_what_costs_time_is_left_out_where_it_can_be(monkeypatch):
    """No filter where nothing is filtered, no whole sort for a small nucleus, few logits at once."""
    logits = some_logits(6, 5000).clamp(max=5)
    logits[:, 7:12] = 30.0  # five tokens hold all the mass
    monkeypatch.setattr(sampling_module, "_descending", None)
    assert ((filter_logits(logits, 1.0, 0, 0.9) > -torch.inf).sum(-1) == 5).all()
    monkeypatch.setattr(sampling_module, "filter_logits", None)
    uniform = torch.linspace(0.05, 0.95, 6)
    expected = draw(logits.clone(), uniform, Sampling(temperature=0.8, top_k=0, top_p=1.0))
    sizes, draw_some = [], sampling_module._draw
    monkeypatch.setattr(sampling_module, "_draw", lambda x, *rest: sizes.append(len(x)) or draw_some(x, *rest))
    for limit, size in ((1, 1), (10_000, 2), (15_000, 3)):
        monkeypatch.setattr(sampling_module, "_NUMBERS_AT_ONCE", limit)
        sizes.clear()
        found = draw(logits.clone(), uniform, Sampling(temperature=0.8))
        assert sizes == [size] * (6 // size)
        assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_nucleus_in_any_precision(dtype):
    logits = torch.tensor([[0.0, 3.0, -9.0, 2.0, 1.0]], dtype=dtype)  # chances 0.03, 0.64, 0, 0.24, 0.09
    kept = filter_logits(logits, 1.0, 0, 0.8) > -torch.inf
    assert kept.tolist() == [[False, True, False, True, False]]


def test_a_flat_nucleus_is_larger_than_the_first_guess():
    """More tokens than are sorted as a whole anyway; the sharp row in the middle needs no second look."""
    logits = some_logits(3, 6000, scale=0.01)
    logits[1] *= 1000
    assert logits.shape[-1] > sampling_module._SORTED_WHOLE
    kept = (filter_logits(logits, 1.0, 0, 0.9) > -torch.inf).sum(-1)
    expected = torch.tensor([int((naive_filter(row.double(), 1.0, 0, 0.9) > 0).sum()) for row in logits])
    assert expected[1] < 128 < expected[0]
    assert (kept - expected).abs().max() <= 1  # float32 sums of 6000 nearly equal numbers


def test_keep_stays_in_the_set_and_gradients_flow():
    logits = some_logits(4, 50).requires_grad_()
    keep = logits.argmin(dim=-1)
    filtered = filter_logits(logits, 0.7, 5, 0.9, keep=keep)
    picked = filtered.log_softmax(-1).gather(-1, keep.unsqueeze(-1))
    assert torch.isfinite(picked).all()
    picked.sum().backward()
    assert torch.isfinite(logits.grad).all()
    is_kept = filtered > -torch.inf
    assert (logits.grad[~is_kept] == 0).all()
    assert (logits.grad[is_kept] != 0).all()


def test_temperature_zero_is_the_models_own_distribution():
    logits = some_logits(2, 9)
    assert torch.equal(filter_logits(logits, 0.0, 3, 0.5), logits)


@pytest.mark.parametrize("vocab", [2, 127, 128, 129, 5000])
def test_draw_inverts_the_cumulative_distribution(vocab: int):
    """The token whose cumulative probability first exceeds the uniform, within float32 of it."""
    logits = some_logits(40, vocab)
    uniform = uniforms(3, range(40), 1)[:, 0]
    drawn = draw(logits.clone(), uniform, Sampling())
    chances = logits.double().softmax(-1)
    cumulative = chances.cumsum(-1)
    for row, token in enumerate(drawn.tokens.tolist()):
        below = cumulative[row, token - 1] if token else 0.0
        assert below - 1e-6 <= uniform[row] <= cumulative[row, token] + 1e-6
    picked = chances.log().gather(-1, drawn.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(drawn.logprobs, picked.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drawn.entropy, -(chances * chances.log()).sum(-1).float(), rtol=1e-5, atol=1e-5)


def test_one_token_left_is_the_likeliest():
    logits = some_logits(40, 300)
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(temperature=0.0)):
        drawn = draw(logits.clone(), uniforms(3, range(40), 1)[:, 0], sampling)
        assert torch.equal(drawn.tokens, logits.argmax(-1))
        if not sampling.is_greedy:
            assert torch.allclose(drawn.logprobs, torch.zeros(40), atol=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_uniforms_never_pick_an_impossible_token(uniform: float):
    logits = torch.full((300, 500), -torch.inf)
    places = torch.randint(500, (300, 7), generator=torch.Generator().manual_seed(2))
    logits.scatter_(1, places, torch.randn(300, 7, generator=torch.Generator().manual_seed(3)))
    drawn = draw(logits.clone(), torch.full((300,), uniform), Sampling())
    assert torch.isfinite(logits.gather(-1, drawn.tokens.unsqueeze(-1))).all()
    edge = places.amin(-1) if uniform == 0 else places.amax(-1)
    assert torch.equal(drawn.tokens, edge)
    assert torch.isfinite(drawn.entropy).all()


def test_uniforms_are_keyed_by_request_and_grow_at_the_end():
    numbers = uniforms(5, [3, 9, -1], 50)
    assert torch.equal(uniforms(5, [9], 20)[0], numbers[1, :20])
    assert not torch.equal(uniforms(6, [9], 20)[0], numbers[1, :20])
    assert len(numbers.unique()) == numbers.numel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(float(uniforms(0, range(100), 100).mean()) - 0.5) < 0.01
