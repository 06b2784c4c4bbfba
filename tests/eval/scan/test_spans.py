"""Hits grow to where recitation ends, and not over the end of a text."""

import itertools

import numpy as np
import pytest

from eval.scan.spans import COST, Span, recited, runs, trimmed


def spans(letters, least=3):
    """Spans of a string: a letter is right, a dot wrong, a bar wrong where the model would end the text."""
    right = np.array([c not in ".|" for c in letters], dtype=bool)
    ends = np.array([c == "|" for c in letters], dtype=bool)
    return [letters[s.start : s.stop] for s in recited(right, ends, least=least)]


@pytest.mark.parametrize(
    ("letters", "found"),
    [
        ("..aaa..", ["aaa"]),
        ("..aa..", []),
        ("aaa.bb", ["aaa"]),  # two right tokens do not outweigh a wrong one
        ("aaaabbbb.cccccccccccc", ["aaaabbbb.cccccccccccc"]),
        ("aaaa|cccccccccccc", ["aaaa", "cccccccccccc"]),  # two texts side by side
        ("aaaa...cccccccccccccccccccccccccccccc", ["aaaa", "c" * 30]),  # below the drop
        ("", []),
    ],
)
def test_hits_grow_to_where_recitation_ends(letters, found):
    assert spans(letters) == found


def test_a_wrong_token_costs_as_much_as_so_many_right_ones():
    assert spans("aaa." + "b" * (COST + 1), least=12) == []
    assert spans("a" * 12 + "." + "b" * COST, least=12) == ["a" * 12]
    assert spans("a" * 12 + "." + "b" * (COST + 1), least=12) == ["a" * 12 + "." + "b" * (COST + 1)]


def test_spans_are_apart_begin_and_end_right_and_hold_every_hit():
    random = np.random.default_rng(0)
    for _ in range(200):
        right = np.repeat(random.random(60) < 0.7, random.integers(1, 6, 60))
        ends = ~right & (random.random(len(right)) < 0.2)
        found = recited(right, ends, least=6)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(found))
        assert all(right[s.start] and right[s.stop - 1] and not ends[s.start : s.stop].any() for s in found)
        hits = [(a, b) for a, b in runs(right) if b - a >= 6]
        assert all(any(s.start <= a and b <= s.stop for s in found) for a, b in hits)
        assert all(s.run == max(b - a for a, b in hits if s.start <= a < s.stop) for s in found)


def test_the_longest_run_is_told():
    assert recited(np.array([1, 1, 0] + [1] * 9, dtype=bool), np.zeros(12, dtype=bool), least=5) == [Span(3, 12, 9)]


def test_a_hit_grows_to_its_left_too():
    assert spans("bbbbbbbbb." + "a" * 12, least=12) == ["bbbbbbbbb." + "a" * 12]
    assert spans("bbbbbbbbb|" + "a" * 12, least=12) == ["a" * 12]


def test_white_space_at_the_ends_is_left_out():
    assert trimmed(" ab \n", 0, 5) == (1, 3)
    assert trimmed("   ", 0, 3) == (3, 3)
