"""The draw equals plain loops in float64."""

from __future__ import annotations

import pytest
import torch

import ppo.generation.sampling as sampling_module
from ppo import Sampling
from ppo.generation.sampling import draw, uniforms


def some_logits(rows: int, vocab: int, *, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1))


def test_filters_and_large_matrices_are_avoided_where_possible(monkeypatch):
    """No filter runs if nothing is filtered, and only few logits are handled at once."""
    logits = some_logits(6, 5000)
    monkeypatch.setattr(sampling_module, "next_token_logits", None)
    uniform = torch.linspace(0.05, 0.95, 6)
    expected = draw(logits.clone(), uniform, Sampling(temperature=0.8, top_k=0, top_p=1.0))
    sizes, draw_some = [], sampling_module.draw_blindly
    monkeypatch.setattr(sampling_module, "draw_blindly", lambda x, *rest: sizes.append(len(x)) or draw_some(x, *rest))
    for limit, size in ((1, 1), (10_000, 2), (15_000, 3)):
        monkeypatch.setattr(sampling_module, "_NUMBERS_AT_ONCE", limit)
        sizes.clear()
        found = draw(logits.clone(), uniform, Sampling(temperature=0.8))
        assert sizes == [size] * (6 // size)
        assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("vocab", [2, 127, 128, 129, 5000])
def test_draw_inverts_the_cumulative_distribution(vocab: int):
    """It is the token whose cumulative probability first exceeds the uniform, up to float32 rounding."""
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


def test_if_the_filters_keep_one_token_it_is_the_likeliest():
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


def test_uniforms_depend_on_the_request_and_a_longer_table_begins_with_the_shorter():
    numbers = uniforms(5, [3, 9, -1], 50)
    assert torch.equal(uniforms(5, [9], 20)[0], numbers[1, :20])
    assert not torch.equal(uniforms(6, [9], 20)[0], numbers[1, :20])
    assert len(numbers.unique()) == numbers.numel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(float(uniforms(0, range(100), 100).mean()) - 0.5) < 0.01
