"""How the model's first choice goes along the suffixes: at which of their tokens it still is the true one.

Each token has the true tokens before it, so that a wrong token at the start hides nothing. One number a token of the
suffix shows what a mean over them does not: forgetting that ends after a few tokens. This module knows arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MOST_PLACES = 1000  # tokens of a suffix that have a number
_DIGITS = 4


def right_along(groups: Sequence[str], rights: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """``<group>/right``: for each token of the suffix, the share of passages of which it is the argmax.

    ``groups``: of each passage. ``rights``: for each token of its suffix, bool [suffix length], whether it is the
    argmax. A share is of the passages whose suffix has such a token. A list ends where fewer than half of the group
    have one, or after ``MOST_PLACES``.

    Example: right right wrong, right wrong, of one group -> [1.0, 0.5, 0.0].
    """
    found: dict[str, list[np.ndarray]] = {}
    for group, right in zip(groups, rights, strict=True):
        found.setdefault(group, []).append(right)
    return {f"{group}/right": _shares(rows) for group, rows in found.items()}


def _shares(rows: Sequence[np.ndarray]) -> list[float]:
    shares = []
    for place in range(min(MOST_PLACES, max(map(len, rows)))):
        here = [float(row[place]) for row in rows if place < len(row)]
        if 2 * len(here) < len(rows):
            break
        shares.append(round(sum(here) / len(here), _DIGITS))
    return shares


def mean_along(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several curves, place by place, as far as all of them go."""
    return [sum(values) / len(values) for values in zip(*curves, strict=False)]


def curve_of(stored: Mapping[str, object], group: str) -> list[float]:
    """The curve of a group in what was stored of an evaluation; [] where there is none."""
    by_place = stored.get("by_place")
    values = by_place.get(f"{group}/right", []) if isinstance(by_place, Mapping) else []
    return list(values) if is_curve(values) else []


def is_curve(values: object) -> bool:
    """Whether a stored value is a list of shares."""
    return (
        isinstance(values, list)
        and len(values) <= MOST_PLACES
        and all(isinstance(x, int | float) and 0 <= x <= 1 for x in values)
    )
