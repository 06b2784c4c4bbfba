"""Runs of tokens that stand somewhere before: elsewhere in a corpus, or earlier in the context of a pass.

A model copies what stands in its context, whether it was ever trained on it or not. So a token that is part of a run of
``COPY`` tokens that its pass has shown before is no sign of a memory. This module knows token ids.
"""

from __future__ import annotations

import numpy as np

COPY = 16  # tokens of a run that is a copy: shorter ones recur in any text


def hashes(ids: np.ndarray, size: int) -> np.ndarray:
    """uint64 [n - size + 1]: a number for every run of ``size`` tokens; equal runs have the same one."""
    mixed = (np.asarray(ids).astype(np.uint64) + np.uint64(size)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    found = np.zeros(max(0, len(ids) - size + 1), dtype=np.uint64)
    for offset in range(size):
        found = found * np.uint64(0x100000001B3) + mixed[offset : offset + len(found)]
    return found ^ (found >> np.uint64(32))


def earlier(ids: np.ndarray) -> np.ndarray:
    """int64 [n]: the last place before token i where the ``COPY`` tokens from i on stand, too; -1: there is none."""
    found = np.full(len(ids), -1, dtype=np.int64)
    runs = hashes(ids, COPY)
    order = np.argsort(runs, kind="stable")
    is_same = runs[order[1:]] == runs[order[:-1]]
    found[order[1:][is_same]] = order[:-1][is_same]
    return found


def copied(before: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """bool [n]: the token is part of a run that its pass has shown before.

    ``before``: of :func:`earlier`. ``starts`` int64 [n]: where the pass of a token begins.
    """
    size = max(0, len(before) - COPY + 1)
    is_copy = np.flatnonzero((before[:size] >= 0) & (before[:size] >= starts[COPY - 1 :][:size]))
    found = np.zeros(len(before), dtype=bool)
    found[(is_copy[:, None] + np.arange(COPY)).ravel()] = True
    return found
