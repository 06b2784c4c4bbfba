"""Intervals at the level of a verdict: which shares are read off them, how they widen, and where they end."""

from __future__ import annotations

import math

import pytest

from eval.intervals import difference_interval, share_interval
from eval.joint import Known, difference_ends, joint_level, share_counts, t_quantile


def test_the_level_is_bonferroni_s():
    assert joint_level(1) == pytest.approx(0.95)
    assert joint_level(10) == pytest.approx(0.995)
    assert joint_level(0) == pytest.approx(0.95)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20, 64, 200])
@pytest.mark.parametrize("more", [0, 7, 100])
def test_how_many_of_how_many_is_read_off_a_share_and_its_interval(count, more):
    for k in {0, 1, count // 2, count - 1, count}:
        assert share_counts(k / count, share_interval(k, count), count + more) == (k, count)


def test_what_is_no_share_of_passages_is_none():
    assert share_counts(0.45, (0.43, 0.47), 200) is None
    assert share_counts(0.0, (0.0, 0.0), 200) is None
    assert share_counts(6.0, (5.0, 7.0), 200) is None
    assert share_counts(0.5, share_interval(4, 8), math.inf) is None
    assert share_counts(0.5, share_interval(400, 800), 200) is None  # of more passages than there are


def test_a_share_s_ends_are_exact_at_every_level():
    """0 of 10: the high end h solves (1 - h)^10 = (1 - level) / 2."""
    share = Known(0.0, *share_interval(0, 10), passages=10)
    low, high = share.ends(0.996)
    assert (low, (1 - high) ** 10) == (0.0, pytest.approx(0.002))
    partly = Known(0.0, *share_interval(0, 10), passages=64)  # 54 passages have no secret
    assert partly.ends(0.996) == share.ends(0.996)


def test_another_mean_s_ends_are_wider_by_the_quotient_of_two_quantiles_and_stay_possible():
    """11 intervals: 2.84 to 1.96 with very many passages, 3.64 with 11 (ten degrees of freedom)."""
    level = joint_level(11)
    wide = Known(0.5, 0.44, 0.56, passages=1e9).ends(level)
    assert wide == pytest.approx((0.5 - 0.06 * 2.8376 / 1.9600, 0.5 + 0.06 * 2.8376 / 1.9600), rel=1e-3)
    assert Known(0.5, 0.44, 0.56, passages=11).ends(level)[1] == pytest.approx(0.5 + 0.06 * 3.637 / 1.9600, rel=2e-3)
    assert Known(0.98, 0.9, 1.0, passages=6).ends(level)[1] == 1.0
    assert Known(0.5, 0.0, 1.0, passages=6).ends(level) == (0.0, 1.0)
    assert Known(1.5, 1.0, 2.0, passages=6, most=math.inf).ends(level)[1] > 2.5
    assert Known.exactly(0.25).ends(level) == (0.25, 0.25)


@pytest.mark.parametrize(("k", "m", "l", "n"), [(0, 10, 0, 6), (10, 10, 0, 6), (3, 10, 6, 6), (1, 20, 0, 4)])
def test_a_difference_stays_within_the_possible_range(k, m, l, n):  # noqa: E741
    one, other = Known(k / m, *share_interval(k, m), passages=m), Known(l / n, *share_interval(l, n), passages=n)
    low, high = difference_ends(one, other, 0.996)
    assert -1 <= low <= k / m - l / n <= high <= 1
    ends = [share_interval(a, b, level=0.996) for a, b in ((k, m), (l, n))]
    assert (low, high) == difference_interval(k / m, ends[0], l / n, ends[1])


@pytest.mark.parametrize(
    ("p", "freedom", "table"),
    [(0.975, 10, 2.228), (0.975, 30, 2.042), (0.995, 10, 3.169), (0.95, 5, 2.015), (0.999, 20, 3.552), (0.5, 7, 0.0)],
)
def test_the_quantile_of_student_s_t_by_the_table(p, freedom, table):
    assert t_quantile(p, freedom) == pytest.approx(table, abs=6e-3)
