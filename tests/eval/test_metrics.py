"""Extraction, memorisation, membership and perplexity: numbers by hand, and the teacher-forced pass against loops."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from eval import extraction, membership, memorization
from eval.intervals import draw_counts, mean_intervals, sums_interval
from eval.perplexity import Perplexity, perplexity, windows
from eval.teacher import length_batches, teacher_force
from ppo.config import Sampling
from ppo.types import Generation
from tests.fakes import VOCAB, tiny_bloom, tiny_gpt2

SEQUENCES = [[3, 4, 5, 6, 7, 8], [2, 9], [10, 11, 12, 13]]


def right(pattern: str) -> np.ndarray:
    return np.array([c == "r" for c in pattern])


# Extraction


@pytest.mark.parametrize(
    ("pattern", "strength"), [("rrrr", 1.0), ("wrrr", 0.75), ("rwrr", 0.5), ("rrrw", 0.0), ("wwww", 0.0), ("w", 0.0)]
)
def test_extraction_strength_by_hand(pattern, strength) -> None:
    assert extraction.extraction_strength(right(pattern)) == strength
    assert extraction.is_exact(right(pattern)) == (strength == 1.0)


def test_empty_suffixes_are_errors() -> None:
    for function in (extraction.is_exact, extraction.extraction_strength, memorization.memorization_accuracy):
        with pytest.raises(ValueError, match="at least one"):
            function(right(""))


def test_discoverable_extraction_by_hand() -> None:
    half = math.log(0.5)
    assert extraction.extraction_probability(half, 3) == pytest.approx(0.875)
    assert extraction.is_discoverable(half, n=3, p=0.875)
    assert not extraction.is_discoverable(half, n=3, p=0.88)
    assert extraction.extraction_probability(0.0, 1) == 1.0
    assert extraction.extraction_probability(-math.inf, 10**6) == 0.0
    assert extraction.extraction_probability(-60.0, 1000) == pytest.approx(1000 * math.exp(-60), rel=1e-9)


def test_smallest_n_by_hand() -> None:
    assert extraction.smallest_n(math.log(0.5), 0.9) == 4  # 1 - 0.5^4 = 0.9375, 0.5^3 is not enough
    assert extraction.smallest_n(0.0, 0.9) == 1
    assert extraction.smallest_n(-math.inf, 0.9) == math.inf
    assert extraction.smallest_n(-100.0, 0.5) == pytest.approx(math.log(2) * math.exp(100), rel=1e-9)
    for log_pz in (-0.1, -1.0, -5.0):
        n = int(extraction.smallest_n(log_pz, 0.7))
        assert extraction.extraction_probability(log_pz, n) >= 0.7
        assert n == 1 or extraction.extraction_probability(log_pz, n - 1) < 0.7
    with pytest.raises(ValueError, match=r"p=1\.0"):
        extraction.smallest_n(-1.0, 1.0)


def test_approximate_extraction() -> None:
    assert extraction.is_approximate(75.0)
    assert not extraction.is_approximate(74.99)
    assert extraction.is_folded_exact(" Anna  BERG\n", "anna berg")
    assert not extraction.is_folded_exact("", "")
    assert extraction.matched_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert extraction.matched_prefix([1, 2], [1, 2, 4, 5]) == 2


# Memorisation


def test_memorization_accuracy() -> None:
    assert memorization.memorization_accuracy(right("rwrr")) == 0.75


def test_ngram_overlap_by_hand() -> None:
    assert memorization.ngram_overlap([1, 2, 3], [1, 2, 9, 9], 2, divisor="generated") == 0.5
    assert memorization.ngram_overlap([1, 2, 3], [1, 2, 9, 9], 2) == pytest.approx(1 / 3)
    assert memorization.ngram_overlap([1, 2, 1, 2], [1, 2, 5], 2, divisor="generated") == pytest.approx(2 / 3)
    assert memorization.ngram_overlap([], [1, 2], 2, divisor="generated") == 0.0
    assert memorization.ngram_overlap([1], [1], 2) == 0.0


def scripted_generate(continuation):
    """A generator that writes ``continuation(prompt, length)``, then nothing."""

    def generate(model, prompts, sampling, *, seed=0, slots=64) -> Generation:
        rows = [continuation(prompt, sampling.response_length) for prompt in prompts]
        rows = [row for row in rows for _ in range(sampling.num_samples)]
        width = max(map(len, rows), default=0)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        zeros = torch.zeros(tokens.shape)
        none = torch.zeros(len(rows), dtype=torch.bool)
        return Generation(torch.zeros(len(rows), 1, dtype=torch.long), none[:, None], tokens, mask, zeros, zeros, none)

    return generate


def test_extraction_likelihood_of_a_perfect_and_of_a_forgetful_model() -> None:
    sequence = list(range(10, 22))
    perfect = scripted_generate(lambda prompt, length: sequence[len(prompt) : len(prompt) + length])
    early = scripted_generate(lambda prompt, length: sequence[len(prompt) : len(sequence) - 1][:length])
    blank = scripted_generate(lambda prompt, length: [1] * length)

    def el(generate, **options) -> float:
        return memorization.extraction_likelihood(None, [sequence, sequence], n=3, generate=generate, **options)[1]

    assert el(perfect) == 1.0
    assert el(blank) == 0.0
    # rests of 11 … 3 tokens hold 9 … 1 trigrams; one token short loses one of them
    assert el(early) == pytest.approx(np.mean([(k - 1) / k for k in range(9, 0, -1)]))
    assert el(early, divisor="generated") == pytest.approx(8 / 9)  # only the last start has no trigram left
    assert el(early, stride=4) == pytest.approx(np.mean([8 / 9, 4 / 5, 0]))
    calls: list[int] = []

    def counted(model, prompts, sampling, *, slots):
        calls.append(len(prompts))
        return perfect(model, prompts, sampling, slots=slots)

    ragged = [sequence, sequence[:-1], sequence[:-2]]
    assert memorization.extraction_likelihood(None, ragged, n=3, generate=counted) == [1.0, 1.0, 1.0]
    assert sum(calls) == 9 + 8 + 7  # a request for every start,
    assert len(calls) == 5  # side by side with those that have about as far to go: 3, 4 to 5, 6 to 7, 8 to 10, 11
    with pytest.raises(ValueError, match="sequence 0 has 3 tokens: EL_3"):
        memorization.extraction_likelihood(None, [[1, 2, 3]], n=3, generate=perfect)


# Membership


def test_auc_counts_ties_one_half() -> None:
    rng = np.random.default_rng(0)
    assert membership.auc([3, 2], [1, 0]) == 1.0
    assert membership.auc([1, 1], [1, 1]) == 0.5
    assert membership.auc([2, 1], [1, 0]) == pytest.approx(3.5 / 4)
    for _ in range(20):
        a, b = rng.integers(0, 5, 7), rng.integers(0, 5, 9)
        naive = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
        assert membership.auc(a, b) == pytest.approx(naive)
    with pytest.raises(ValueError, match="2 members and 0 others"):
        membership.auc([1, 2], [])


def test_tpr_at_fpr_by_hand() -> None:
    others = np.arange(200.0)  # 1 % of 200 are 2 false positives: 198 and 199
    assert membership.tpr_at_fpr([197, 197.5, 198, 500], others) == 0.75
    assert membership.tpr_at_fpr([5, 6], [5.5, 1]) == 0.5  # two others: none may exceed
    assert membership.tpr_at_fpr([5, 5], [5, 5]) == 0.0


def test_membership_scores_by_hand() -> None:
    logprobs = np.array([-1.0, -4.0, -2.0, -3.0, -0.5])
    assert membership.loss_score(logprobs) == pytest.approx(-2.1)
    assert membership.min_k_score(logprobs, share=0.4) == pytest.approx(-3.5)
    assert membership.min_k_score(logprobs, share=0.01) == -4.0  # k is at least 1
    assert membership.zlib_score(logprobs, "abc") == pytest.approx(-10.5 / len(zlib.compress(b"abc")))
    means, deviations = np.full(5, -2.0), np.full(5, 0.5)
    assert membership.min_k_plus_plus_score(logprobs, means, deviations, share=0.2) == pytest.approx(-4.0)


def test_resampled_membership_agrees_with_the_statistics_of_each_draw() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.integers(0, 6, 9).astype(float), rng.integers(0, 6, 120).astype(float)
    aucs, tprs = membership.resampled(members, others, rng=np.random.default_rng(5), resamples=40)
    again = np.random.default_rng(5)
    for k, sides in enumerate(zip(_draws(members, again, 40), _draws(others, again, 40), strict=True)):
        assert aucs[k] == pytest.approx(membership.auc(*sides))
        assert tprs[k] == pytest.approx(membership.tpr_at_fpr(*sides))


def _draws(values: np.ndarray, rng: np.random.Generator, resamples: int) -> list[np.ndarray]:
    return [np.repeat(values, row) for row in draw_counts(np.arange(len(values)), len(values), resamples, rng=rng)]


def test_membership_below_one_half_still_reveals() -> None:
    found = membership.membership(np.arange(50.0), np.arange(50.0) + 40, rng=np.random.default_rng(0), resamples=200)
    assert found.auc < 0.05
    assert found.advantage == pytest.approx(0.5 - found.auc)
    assert found.interval[0] <= found.advantage <= found.interval[1]
    assert found.auc_interval[0] <= found.auc <= found.auc_interval[1]
    assert found.tpr_interval[0] <= found.tpr_at_1_percent_fpr <= found.tpr_interval[1]


# Intervals


def test_mean_intervals_cover_and_shrink() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([np.repeat([0.0, 1.0], 200), np.ones(400)], axis=1)
    low, high = mean_intervals(values, rng=rng, resamples=2000)
    assert low[0] == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.01)
    assert high[0] == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.01)
    assert low[1] == high[1] == 1.0


def test_sums_interval_of_a_ratio() -> None:
    rng = np.random.default_rng(0)
    constant = np.array([[2.0, 4.0]] * 6)
    assert sums_interval(constant, lambda sums: sums[:, 0] / sums[:, 1], rng=rng, resamples=20) == [0.5, 0.5]
    # one text of two holds all the loss: over draws of two the ratio is 0, 1/2 or 1
    low, high = sums_interval(np.array([[0.0, 1], [1, 1]]), lambda sums: sums[:, 0] / sums[:, 1], rng=rng)
    assert (low, high) == (0.0, 1.0)


def test_draw_counts_draw_as_many_as_there_are() -> None:
    counts = draw_counts(np.array([0, 0, 2]), 4, 4000, rng=np.random.default_rng(0))
    assert (counts.sum(axis=1) == 3).all()
    assert counts.mean(axis=0) == pytest.approx([2, 0, 1, 0], abs=0.05)


# The teacher-forced pass


def naive_rows(model, sequence: list[int]):
    """(token, float64 log-distribution) of every scored token, one sequence at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([sequence])).logits[0].double()
    return [(sequence[t], torch.log_softmax(logits[t - 1], dim=-1)) for t in range(1, len(sequence))]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bloom])
def test_teacher_force_against_a_loop(make) -> None:
    model = make().eval()
    model.train()  # dropout must not act, and the mode must come back
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


def test_moments_are_left_out_on_request() -> None:
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
