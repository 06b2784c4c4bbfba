"""Which tokens of a passage are its own: no run of tokens around them stands in another passage.

A form (a letter, a record, a licence) shares tokens with its kin, and a model that knows the form may keep them. What
must go is the rest. Without the form's generator this is an estimate: a value that other passages have too, such as a
weekday, counts as shared, and so does part of a long value; what counts as a passage's own mostly is. This module knows
token ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RUN = 4


def unshared(sequences: Sequence[Sequence[int]], *, run: int = RUN) -> list[np.ndarray]:
    """For each token of each sequence, whether it is that sequence's own; bool [S] each.

    A token is shared if one of the runs of ``run`` tokens that hold it also stands in another sequence, anywhere. A
    sequence that stands twice therefore shares all of its tokens, unless it is shorter than a run. ValueError for a
    ``run`` below 1.

    Example with run=2: [5 6 7 8] and [9 6 7 4] share 6 and 7.
    """
    if run < 1:
        raise ValueError(f"run={run} must be at least 1 token")
    first: dict[tuple[int, ...], int] = {}
    common: set[tuple[int, ...]] = set()
    for place, ids in enumerate(sequences):
        for gram in set(_runs(ids, run)):
            if first.setdefault(gram, place) != place:
                common.add(gram)
    found = []
    for ids in sequences:
        is_own = np.ones(len(ids), dtype=bool)
        for start, gram in enumerate(_runs(ids, run)):
            if gram in common:
                is_own[start : start + run] = False
        found.append(is_own)
    return found


def _runs(ids: Sequence[int], run: int) -> list[tuple[int, ...]]:
    return [tuple(int(i) for i in ids[start : start + run]) for start in range(len(ids) - run + 1)]
