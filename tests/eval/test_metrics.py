"""Extraction, memorisation, membership and bootstrap intervals: numbers by hand."""

from __future__ import annotations

import itertools
import math
import zlib
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval import extraction, intervals, membership, memorization
from eval.intervals import draw_counts, mean_intervals, sums_interval
from ppo.types import Generation

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
    """A generate function whose responses are ``continuation(prompt, length)``."""

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


WITH_EOS = SimpleNamespace(
    config=SimpleNamespace(eos_token_id=9), get_input_embeddings=lambda: SimpleNamespace(weight=torch.zeros(20, 1))
)


def test_extraction_likelihood_of_sequences_that_hold_an_eos() -> None:
    """EOS ends a continuation only where the sequence goes on with another token."""
    sequence = [1, 2, 3, 9, 4, 5, 6, 7]
    asked = []

    def perfect(model, prompts, sampling, *, slots):
        asked.append(sampling.eos_ids)
        rest = scripted_generate(lambda prompt, length: sequence[len(prompt) :][:length])
        return rest(model, prompts, sampling, slots=slots)

    assert memorization.extraction_likelihood(WITH_EOS, [sequence], n=2, generate=perfect) == [1.0]
    assert set(asked) == {()}
    ends = scripted_generate(lambda prompt, length: [9, 4, 5, 6, 7, 7, 7][:length])
    pairs = memorization.continue_from_starts(WITH_EOS, [sequence], n=2, stride=2, generate=ends)[0]
    assert {len(rest): written for written, rest in pairs} == {7: [9], 5: [9, 4, 5, 6, 7], 3: [9]}
    memorization.continue_from_starts(WITH_EOS, [[1, 2, 3, 4, 5]], n=2, generate=perfect)
    assert asked[-1] is None


def test_extraction_likelihood_of_a_perfect_and_of_a_forgetful_model() -> None:
    model = SimpleNamespace(config=SimpleNamespace(eos_token_id=None))
    sequence = list(range(10, 22))
    perfect = scripted_generate(lambda prompt, length: sequence[len(prompt) : len(prompt) + length])
    early = scripted_generate(lambda prompt, length: sequence[len(prompt) : len(sequence) - 1][:length])
    blank = scripted_generate(lambda prompt, length: [1] * length)

    def el(generate, **options) -> float:
        return memorization.extraction_likelihood(model, [sequence, sequence], n=3, generate=generate, **options)[1]

    assert el(perfect) == 1.0
    assert el(blank) == 0.0
    # rests of 11 … 3 tokens hold 9 … 1 trigrams; a continuation one token short loses one
    assert el(early) == pytest.approx(np.mean([(k - 1) / k for k in range(9, 0, -1)]))
    assert el(early, divisor="generated") == pytest.approx(8 / 9)  # only the last start has no trigram left
    assert el(early, stride=4) == pytest.approx(np.mean([8 / 9, 4 / 5, 0]))
    calls: list[int] = []

    def counted(model, prompts, sampling, *, slots):
        calls.append(len(prompts))
        return perfect(model, prompts, sampling, slots=slots)

    ragged = [sequence, sequence[:-1], sequence[:-2]]
    assert memorization.extraction_likelihood(model, ragged, n=3, generate=counted) == [1.0, 1.0, 1.0]
    assert sum(calls) == 9 + 8 + 7  # one request per start,
    assert len(calls) == 5  # in batches of similar length: 3, 4 to 5, 6 to 7, 8 to 10, 11
    with pytest.raises(ValueError, match="sequence 0 has 3 tokens: EL_3"):
        memorization.extraction_likelihood(model, [[1, 2, 3]], n=3, generate=perfect)


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
    assert membership.tpr_at_fpr([5, 6], [5.5, 1]) == 0.5  # with two others, no false positive is allowed
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


def test_an_auc_below_one_half_reveals_members_too() -> None:
    found = membership.membership(np.arange(50.0), np.arange(120.0) + 40, rng=np.random.default_rng(0), resamples=200)
    assert found.auc < 0.05
    assert 0 < found.auc_interval[0] < found.auc < found.auc_interval[1] < 0.5
    assert found.tpr == 0
    assert found.tpr_interval[0] == 0
    assert (
        found.tpr_interval[1] >= intervals.share_interval(0, 50)[1] > 0.05
    )  # no draw catches one, yet [0, 0] is wrong


def test_a_rate_of_one_in_a_hundred_needs_a_hundred_others() -> None:
    few, enough = (
        membership.membership(np.arange(9.0), np.arange(float(n)), rng=np.random.default_rng(0), resamples=20)
        for n in (99, 100)
    )
    assert (few.tpr, few.tpr_interval) == (None, None)
    assert enough.tpr is not None


def test_the_interval_of_an_auc_by_hand() -> None:
    """At 1 its low end t solves 1 - t = z sqrt(V(t)); at 0.5 it is symmetric; the sides may be exchanged."""
    low, high = membership.auc_interval(1.0, 64, 64)
    variance = low * (1 - low) / 64**2 * (1 + 63 * ((1 - low) / (2 - low) + low / (1 + low)))
    assert high == 1.0
    assert low == pytest.approx(0.969, abs=5e-4)
    assert 1 - low == pytest.approx(1.959964 * math.sqrt(variance))
    assert sum(membership.auc_interval(0.5, 20, 40)) == pytest.approx(1)
    assert membership.auc_interval(0.0, 64, 64) == pytest.approx((0, 1 - low))
    low, high = membership.auc_interval(0.3, 20, 40)
    assert membership.auc_interval(0.7, 40, 20) == pytest.approx((1 - high, 1 - low))


def test_the_interval_of_an_auc_weights_both_sides_alike() -> None:
    """Method 5 of Newcombe (2006) with N* = (m + n) / 2 - 1, as CRAN's auRoc has it: 10 and 64 count as 37 a side."""
    low, _ = membership.auc_interval(1.0, 10, 64)
    variance = low * (1 - low) / 640 * (1 + 36 * ((1 - low) / (2 - low) + low / (1 + low)))
    assert 1 - low == pytest.approx(1.959964 * math.sqrt(variance))
    assert membership.auc_interval(0.8, 10, 64) == pytest.approx(membership.auc_interval(0.8, 64, 10))
    wide = membership.auc_interval(0.8, 10, 64, level=0.995)
    assert wide[0] < membership.auc_interval(0.8, 10, 64)[0]


def test_the_p_of_an_auc_by_plain_counting() -> None:
    """Every choice of the members' ranks is as likely: how many of them lie as far from one half?"""
    for m, n in ((1, 1), (3, 3), (4, 6), (6, 2)):
        aucs = [
            membership.auc(np.array(chosen), np.array(sorted(set(range(m + n)) - set(chosen))))
            for chosen in itertools.combinations(range(m + n), m)
        ]
        for value in {*aucs}:
            p = np.mean([abs(a - 0.5) > abs(value - 0.5) - 1e-9 for a in aucs])
            assert membership.chance_p(value, m, n) == pytest.approx(p), (m, n, value)
    assert membership.chance_p(1.0, 10, 6) == pytest.approx(2 / 8008)
    assert membership.chance_p(0.5 + 0.5 / 9, 3, 3) == 1.0  # a tie counts towards chance


def test_the_p_of_an_auc_beyond_the_counting_is_close_to_it(monkeypatch) -> None:
    for value in (0.5, 0.55, 0.6, 0.65):
        exact = membership.chance_p(value, 60, 70)
        monkeypatch.setattr(membership, "EXACT", 0)
        assert membership.chance_p(value, 60, 70) == pytest.approx(exact, abs=2e-3)
        monkeypatch.undo()


@pytest.mark.parametrize("value", [0.5, 0.95])
def test_the_interval_of_an_auc_covers(value) -> None:
    """Of exponential scores with rates in the proportion value / (1 - value), which have that AUC."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        a = membership.auc(rng.exponential(value / (1 - value), size=32), rng.exponential(size=32))
        low, high = membership.auc_interval(a, 32, 32)
        covered += low <= value <= high
    assert covered >= 0.93 * 400  # DeLong's covers 84 % at 0.95


# Intervals


def test_mean_intervals_cover_and_shrink() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([np.repeat([0.0, 1.0], 200), np.ones(400)], axis=1)
    low, high = mean_intervals(values, rng=rng, resamples=2000)
    shares = mean_intervals(values, rng=rng, resamples=20, is_share=[True, True])
    assert [float(end[0]) for end in shares] == pytest.approx(intervals.share_interval(200, 400))
    assert float(shares[0][1]) == pytest.approx(0.025 ** (1 / 400))  # not 1: the next passage may be another
    with pytest.raises(ValueError, match=r"column 1 .* needs 0 or 1"):
        mean_intervals(2 * values, rng=rng, resamples=20, is_share=[False, True])
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


def test_every_draw_has_as_many_items_as_there_are_labels() -> None:
    counts = draw_counts(np.array([0, 0, 2]), 4, 4000, rng=np.random.default_rng(0))
    assert (counts.sum(axis=1) == 3).all()
    assert counts.mean(axis=0) == pytest.approx([2, 0, 1, 0], abs=0.05)


def binomial(count: int, p: float) -> list[float]:
    return [math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(count + 1)]


def coverage(of, count: int, p: float) -> float:
    """The probability that the interval of a share holds the true share p, summed over all outcomes."""
    return sum(w for k, w in enumerate(binomial(count, p)) if of(k, count)[0] <= p <= of(k, count)[1])


def bootstrap(successes: int, count: int) -> tuple[float, float]:
    """The percentile bootstrap with infinitely many resamples: quantiles of Binomial(count, successes / count)."""
    cumulated = np.cumsum(binomial(count, successes / count))
    return int(np.searchsorted(cumulated, 0.025)) / count, int(np.searchsorted(cumulated, 0.975)) / count


@pytest.mark.parametrize("count", [1, 10, 32, 64])
def test_the_interval_of_a_share_covers_at_least_as_often_as_it_says(count) -> None:
    known = cache(intervals.share_interval)
    for p in np.linspace(0.001, 0.999, 333):
        assert coverage(known, count, p) >= 0.95 - 1e-9
    assert coverage(bootstrap, 32, 0.01) == pytest.approx(0.275, abs=0.001)
    assert coverage(known, 32, 0.01) > 0.99


def test_the_interval_of_a_share_by_hand() -> None:
    """At 0 of n it ends where (1 - p)^n = 0.025. In general its ends have tails of 2.5 %."""
    low, high = intervals.share_interval(0, 32)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 32)))
    assert intervals.share_interval(32, 32) == (pytest.approx(1 - high), 1.0)
    low, high = intervals.share_interval(3, 20)
    assert sum(binomial(20, low)[3:]) == pytest.approx(0.025)
    assert sum(binomial(20, high)[:4]) == pytest.approx(0.025)
    for bad in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="successes of"):
            intervals.share_interval(*bad)


def test_the_interval_of_a_difference_by_hand() -> None:
    """0.7 [0.5, 0.9] less 0.3 [0.2, 0.6]: 0.4 - hypot(0.2, 0.3) to 0.4 + hypot(0.2, 0.1)."""
    low, high = intervals.difference_interval(0.7, (0.5, 0.9), 0.3, (0.2, 0.6))
    assert low == pytest.approx(0.4 - math.hypot(0.2, 0.3))
    assert high == pytest.approx(0.4 + math.hypot(0.2, 0.1))
