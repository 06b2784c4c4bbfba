"""Noise on the weights: it takes a memorised passage before it takes the language, and the model stays as it was."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.fakes import tiny_gpt2
from unlearning.deep import noise
from unlearning.deep.noise import NUM_DRAWS, SHAKEN, mean_nll, noisy_logprobs

PASSAGE, OTHER = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17, 14, 15, 16, 17, 14, 15, 16, 17]


def trained(texts, steps=150):
    model, optimizer = (found := tiny_gpt2(dropout=0.0)), torch.optim.Adam(found.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = sum(model(ids, labels=ids).loss for text in texts if (ids := torch.tensor([text])) is not None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_the_model_stays_and_the_noise_is_that_of_its_seed():
    model = trained([PASSAGE])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found, again, other = (noisy_logprobs(model, [PASSAGE], nll=3.0, seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert np.array_equal(found, again)
    assert not np.array_equal(found, other)
    assert found.shape == (len(PASSAGE),)
    assert found[0] == 0
    assert (found[1:] < 0).all()


def test_the_size_is_that_at_which_the_passages_have_become_a_little_unlikely(monkeypatch):
    model, asked = trained([PASSAGE]), []
    size = noise._size

    def _size(nll_at, aim):
        found = size(nll_at, aim)
        asked.append((nll_at(found), aim))
        return found

    monkeypatch.setattr(noise, "_size", _size)
    noisy_logprobs(model, [PASSAGE], nll=6.0, seed=0)
    ((found, aim),) = asked
    assert aim == 6.0 * SHAKEN
    assert abs(math.log(found / aim)) <= math.log(noise._TOLERANCE)
    assert mean_nll(noisy_logprobs(model, [PASSAGE], nll=0.6, seed=0)) < 0.4 * found


@pytest.mark.parametrize("true_size", [1e-3, 0.09, 0.1, 2.5])
def test_the_search_finds_a_size_below_and_above_its_start(true_size):
    tried = []

    def nll_at(size):
        tried.append(size)
        return size**2

    found = noise._size(nll_at, true_size**2)
    assert len(tried) <= noise._MOST_TRIES
    assert true_size / 1.2 < found < true_size * 1.2 or len(tried) == noise._MOST_TRIES
    assert min(tried, key=lambda s: abs(math.log(s / true_size))) == found


def test_embeddings_and_vectors_get_no_noise():
    model = tiny_gpt2(dropout=0.0)
    found = {id(target) for _, target in noise._weights(model)}
    names = {
        name
        for name, weight in model.named_parameters()
        if weight.data_ptr() in {t.data_ptr() for _, t in noise._weights(model)}
    }
    assert found
    assert not any("wte" in name or "wpe" in name or "ln" in name or "bias" in name for name in names)
    assert all(weight.dim() > 1 for _, weight in noise._weights(model))


def test_probabilities_are_averaged_and_the_noise_is_as_large_as_it_says(monkeypatch):
    """Of a model whose forward is watched: NUM_DRAWS draws, each the weights and noise of the asked deviation."""
    model, seen = nn.Sequential(nn.Linear(200, 300, bias=False)), []
    nn.init.normal_(model[0].weight, std=0.5)

    def teacher_force(shaken, rows, *, has_moments):
        seen.append((shaken[0].weight - model[0].weight).detach().clone())
        number = float(len(seen))
        return [
            type("Found", (), {"logprobs": np.array([np.nan, -number, -2 * number], dtype=np.float32)})() for _ in rows
        ]

    monkeypatch.setattr(noise, "teacher_force", teacher_force)
    monkeypatch.setattr(noise, "_size", lambda nll_at, aim: 0.3)
    (found,) = noisy_logprobs(model, [[1, 2, 3]], nll=3.0, seed=5)
    assert len(seen) == NUM_DRAWS
    wanted = [math.log(sum(math.exp(-k * n) for n in range(1, NUM_DRAWS + 1)) / NUM_DRAWS) for k in (1, 2)]
    assert found.tolist() == pytest.approx([0.0, *wanted])
    for drawn in seen:
        assert float(drawn.std()) == pytest.approx(0.3 * 0.5, rel=0.02)
    assert not torch.equal(seen[0], seen[1])


def test_it_takes_what_was_learned_once_before_what_was_learned_often():
    """A text that repeats itself is language; a run of tokens that never come again is memory."""
    model = trained([PASSAGE, OTHER, OTHER[1:], OTHER[2:]])
    once, often = noisy_logprobs(model, [PASSAGE, OTHER], nll=6.0, seed=0)
    assert -once[5:].mean() > 1.5 * -often[5:].mean()
