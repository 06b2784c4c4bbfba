"""What counts as a number, a whole number and a boolean."""

import math
from fractions import Fraction

import numpy as np
import pytest

from ppo.io.plain import finite, is_boolean, is_whole


@pytest.mark.parametrize(
    ("value", "whole", "boolean", "number"),
    [
        (3, True, False, 3.0),
        (np.int64(-3), True, False, -3.0),
        (np.uint8(200), True, False, 200.0),
        (True, False, True, None),
        (np.bool_(False), False, True, None),
        (0.5, False, False, 0.5),
        (np.float32(0.5), False, False, 0.5),
        (np.float16(2), False, False, 2.0),
        (Fraction(1, 4), False, False, 0.25),
        (math.nan, False, False, None),
        (np.float32("inf"), False, False, None),
        (10**400, True, False, None),
        ("3", False, False, None),
        (None, False, False, None),
        (1j, False, False, None),
        ([3], False, False, None),
    ],
)
def test_values_are_told_apart(value, whole, boolean, number):
    assert (is_whole(value), is_boolean(value), finite(value)) == (whole, boolean, number)
    assert type(finite(value)) in (float, type(None))
