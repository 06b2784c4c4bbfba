"""Texts near the suffix: the search against the sum over all of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from eval.evaluate import evaluate
from eval.near import near_metrics, near_probabilities
from eval.settings import Settings
from ppo.config import Sampling
from tests.eval.test_evaluate import Passage
from tests.fakes import VOCAB, Letters, tiny_gpt2

EOS = 1
PASSAGES = [Passage("a", (), (2, 3), (4, 5, 6), "forget"), Passage("b", (), (7, 8, 9), (3, 2), "forget")]


def probability(model, passage, text, sampling) -> float:
    ids = torch.tensor([[*passage.prefix, *text]])
    with torch.no_grad():
        logits = model(ids).logits[0].double() / sampling.temperature
    start = len(passage.prefix) - 1
    total = 0.0
    for t, token in enumerate(text):
        row = logits[start + t]
        if sampling.top_k:
            row = row.masked_fill(row < row.topk(sampling.top_k).values[-1], -torch.inf)
        total += float(torch.log_softmax(row, dim=-1)[token])
    return math.exp(total)


def all_near(model, passage, most, sampling) -> float:
    """The sum over every text that differs from the suffix in at most ``most`` tokens and does not end early."""
    truth = passage.suffix
    texts = itertools.product(*([t, *(v for v in range(VOCAB) if v not in (t, EOS))] for t in truth))
    return sum(
        probability(model, passage, text, sampling)
        for text in texts
        if sum(a != b for a, b in zip(text, truth, strict=True)) <= most
    )


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5, top_k=6)])
@pytest.mark.parametrize("most", [1, 2])
def test_a_search_through_everything_finds_everything(most, sampling) -> None:
    model = tiny_gpt2().eval()
    found = near_probabilities(
        model, PASSAGES, passes=10_000, most=most, sampling=sampling, alternatives=VOCAB, batch_tokens=64
    )
    assert found == pytest.approx([all_near(model, p, most, sampling) for p in PASSAGES], rel=1e-4)


def test_a_bounded_search_is_a_lower_bound_that_grows() -> None:
    model, sampling = tiny_gpt2().eval(), Sampling()
    exact = [probability(model, p, p.suffix, sampling) for p in PASSAGES]
    whole = [all_near(model, p, 2, sampling) for p in PASSAGES]
    bounds = [near_probabilities(model, PASSAGES, passes=n, most=2, sampling=sampling) for n in (1, 20, 80)]
    assert bounds[0] == pytest.approx(exact, rel=1e-4)
    for i in range(len(PASSAGES)):
        assert bounds[0][i] < bounds[1][i] < bounds[2][i] <= whole[i]
    (row, _) = near_metrics(model, PASSAGES, passes=20, most=2, sampling=sampling)
    assert row["near_p"] == pytest.approx(bounds[1][0])
    assert row["near_leak_10"] == pytest.approx(1 - (1 - bounds[1][0]) ** 10, rel=1e-6)


def test_the_search_is_off_unless_asked_for() -> None:
    model = tiny_gpt2().eval()
    settings = Settings(num_samples=0, resamples=10, lens_tokens=0)
    assert "forget/near_p" not in evaluate(model, Letters(), PASSAGES, settings=settings).summary
    found = evaluate(model, Letters(), PASSAGES, settings=Settings(num_samples=0, resamples=10, near_passes=9))
    assert found.summary["forget/near_p"] > found.summary["forget/sequence_p"] > 0
    assert "at most 2 tokens" in found.definitions["forget/near_p"]
    assert "near_leak_1000" in found.signatures
