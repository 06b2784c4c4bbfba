"""benchmarks/soak.py finds the slopes of readings whose slope is known."""

import math
import random

import pytest

from benchmarks.soak import blocks, centred, fit, summary

NAMES = ("memory/resident_mib", "memory/tensors", "memory/objects")


def readings(start, steps, slope, *, height=0.0, noise=0.0, seed=0):
    """Memory that grows by ``slope`` a step from ``height``, after 50 steps in which it grows much faster."""
    rng = random.Random(seed)
    rows = []
    for step in range(start + 1, start + steps + 1):
        value = height + slope * step + 10 * min(step - start, 50) + noise * rng.gauss(0, 1)
        rows.append({"start": start, "step": step, **dict.fromkeys(NAMES, value)})
    return rows


def slope_of(rows, settle=50):
    result = summary(rows, settle=settle)
    return result["memory/tensors per 1000 steps"], result["memory/tensors per 1000 steps, 95 % ±"]


def test_a_known_slope_past_the_first_steps():
    rows = readings(0, 550, 0.003)
    assert slope_of(rows) == (pytest.approx(3.0), pytest.approx(0.0, abs=1e-6))
    assert slope_of(rows, settle=0)[0] > 100  # the first steps belong to it then
    assert summary(rows, settle=50)["resident MiB at the end"] == rows[-1]["memory/resident_mib"]


def test_two_starts_of_different_height_have_one_slope():
    rows = readings(0, 350, 0.002, height=400) + readings(350, 250, 0.002, height=-900)
    assert slope_of(rows) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-6))


def test_a_start_that_is_too_short_for_two_blocks_says_nothing():
    rows = readings(0, 350, 0.002) + readings(350, 95, 7.0)
    assert slope_of(rows)[0] == pytest.approx(2.0)
    assert [len(start) for start in blocks(rows, NAMES[0], 50)] == [12]
    assert all(math.isnan(x) for x in slope_of(readings(0, 120, 1.0)))  # two blocks: a line through them, no error


def test_the_interval_holds_the_true_slope_nineteen_times_of_twenty():
    found = [slope_of(readings(0, 1050, 0.004, noise=2.0, seed=seed)) for seed in range(200)]
    held = sum(abs(slope - 4.0) <= half for slope, half in found)
    assert 180 <= held <= 199
    assert max(half for _, half in found) < 1.0


def test_points_around_their_mean():
    assert centred([(1.0, 5.0), (3.0, 9.0)]) == [(-1.0, -2.0), (1.0, 2.0)]
    slope, half = fit([(-1.0, -2.0), (1.0, 2.0), (-1.0, -1.0), (1.0, 1.0)], num_starts=2)
    assert slope == pytest.approx(1.5)
    assert half == pytest.approx(1.96 * math.sqrt(1.0 / 1 / 4))  # four errors of ½, one of freedom, Σx² = 4
