"""The teacher-forced pass against loops, and the perplexity that is computed from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eval.perplexity import Perplexity, perplexity, windows
from eval.teacher import length_batches, teacher_force
from ppo.config import Sampling
from tests.fakes import VOCAB, tiny_bloom, tiny_gpt2

SEQUENCES = [[3, 4, 5, 6, 7, 8], [2, 9], [10, 11, 12, 13]]


def naive_rows(model, sequence: list[int]):
    """(token, float64 log-distribution) of every scored token, one sequence at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([sequence])).logits[0].double()
    return [(sequence[t], torch.log_softmax(logits[t - 1], dim=-1)) for t in range(1, len(sequence))]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bloom])
def test_teacher_force_against_a_loop(make) -> None:
    model = make().eval()
    model.train()  # dropout must be off, and the mode must be restored
    results = teacher_force(model, SEQUENCES, batch_tokens=10, chunk_tokens=3)
    assert model.training
    model.eval()
    for sequence, found in zip(SEQUENCES, results, strict=True):
        assert math.isnan(found.logprobs[0])
        assert found.ranks[0] == -1
        for t, (token, row) in enumerate(naive_rows(model, sequence), start=1):
            mean = float((row.exp() * row).sum())
            variance = float((row.exp() * (row - mean) ** 2).sum())
            assert found.logprobs[t] == pytest.approx(float(row[token]), abs=1e-5)
            assert found.sampler_logprobs[t] == found.logprobs[t]
            assert found.ranks[t] == int((row > row[token]).sum())
            assert found.is_right[t] == (int(row.argmax()) == token)
            assert found.means[t] == pytest.approx(mean, abs=1e-5)
            assert found.deviations[t] == pytest.approx(math.sqrt(max(variance, 1e-6)), abs=1e-4)
        assert found.nll == pytest.approx(
            -sum(float(row[token]) for token, row in naive_rows(model, sequence)), abs=1e-4
        )


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.8}])
def test_sampler_logprobs_follow_the_actual_sampler(options) -> None:
    model = tiny_gpt2().eval()
    sampling = Sampling(**options)
    for sequence, found in zip(SEQUENCES, teacher_force(model, SEQUENCES, sampling=sampling), strict=True):
        for t, (token, row) in enumerate(naive_rows(model, sequence), start=1):
            p = torch.softmax(row / sampling.temperature, dim=-1)
            order = p.argsort(descending=True).tolist()
            kept = order[: sampling.top_k] if sampling.top_k else order
            total, nucleus, mass = float(p[kept].sum()), [], 0.0
            for i in kept:
                if mass >= sampling.top_p * total:
                    break
                nucleus.append(i)
                mass += float(p[i])
            expected = math.log(float(p[token]) / mass) if token in nucleus else -math.inf
            assert found.sampler_logprobs[t] == pytest.approx(expected, abs=1e-4)


def test_moments_are_skipped_on_request() -> None:
    found = teacher_force(tiny_gpt2(), SEQUENCES[:1], has_moments=False)[0]
    whole = teacher_force(tiny_gpt2(), SEQUENCES[:1])[0]
    assert np.isnan(found.means).all()
    assert np.isnan(found.deviations).all()
    assert found.logprobs[1:] == pytest.approx(whole.logprobs[1:])
    assert (found.is_right == whole.is_right).all()


def test_teacher_force_from_a_start() -> None:
    model = tiny_gpt2()
    whole = teacher_force(model, SEQUENCES)[0]
    part = teacher_force(model, SEQUENCES[:1], starts=[4])[0]
    assert np.isnan(part.logprobs[:4]).all()
    assert part.logprobs[4:] == pytest.approx(whole.logprobs[4:], abs=1e-5)


def test_teacher_force_refuses_what_it_cannot_score() -> None:
    model = tiny_gpt2()
    with pytest.raises(ValueError, match="sequence 1 has 1 tokens and start 1"):
        teacher_force(model, [[1, 2], [3]])
    with pytest.raises(ValueError, match="temperature=0"):
        teacher_force(model, [[1, 2]], sampling=Sampling(temperature=0.0))
    with pytest.raises(ValueError, match="min_response_length=2 bans EOS early"):
        teacher_force(model, [[1, 2]], sampling=Sampling(min_response_length=2))
    with pytest.raises(ValueError, match="60 tokens, the model's context only 48"):
        teacher_force(model, [[1] * 60])


def test_length_batches() -> None:
    assert length_batches([2, 5, 3, 5], batch_tokens=10) == [[1, 3], [2, 0]]
    assert length_batches([20], batch_tokens=10) == [[0]]


# Perplexity


def test_perplexity_is_token_weighted() -> None:
    model = tiny_gpt2().eval()
    rows = [row for sequence in SEQUENCES for row in naive_rows(model, sequence)]
    nll = -sum(float(row[token]) for token, row in rows)
    found = perplexity(model, [*SEQUENCES, [5]])
    assert found.num_tokens == len(rows) == 9
    assert found.value == pytest.approx(math.exp(nll / 9), rel=1e-5)
    assert Perplexity(1e6, 1).value == math.exp(700)
    with pytest.raises(ValueError, match="none of the 1"):
        perplexity(model, [[5]])


@pytest.mark.parametrize(("length", "window", "overlap"), [(8, 4, 2), (9, 4, 0), (48, 48, 5), (100, 48, 47), (5, 2, 1)])
def test_windows_score_every_token_once(length, window, overlap) -> None:
    parts = windows(length, window, overlap)
    assert [t for _, first, end in parts for t in range(first, end)] == list(range(1, length))
    assert all(begin < first and end - begin <= window for begin, first, end in parts)
    assert windows(8, 4, 2) == [(0, 1, 4), (2, 4, 6), (4, 6, 8)]


def test_perplexity_of_a_text_longer_than_the_context() -> None:
    model = tiny_gpt2().eval()
    text = torch.randint(2, VOCAB, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    found = perplexity(model, [text], overlap=20)
    expected = 0.0
    for begin, first, end in [(0, 1, 48), (28, 48, 60)]:
        rows = naive_rows(model, text[begin:end])
        expected -= sum(float(row[token]) for token, row in rows[first - begin - 1 :])
    assert found.num_tokens == 59
    assert found.nll == pytest.approx(expected, abs=1e-3)
