"""Whole numbers, numbers and booleans as people have them: Python's or numpy's.

A bool is no number here, although Python counts it as one. This module knows single values, no lists and no tensors.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, such as 3 or ``np.int64(3)``; True and 3.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_boolean(value: Any) -> bool:
    """Whether a value is True or False, Python's or numpy's."""
    return isinstance(value, bool | np.bool_)


def finite(value: Any) -> float | None:
    """A number, such as 3 or ``np.float32(0.5)``, as a float; None for a bool, NaN, an infinity, and what is no number.

    A whole number that is too large for a float is None, too.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
