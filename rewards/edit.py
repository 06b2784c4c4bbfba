"""Normalised token edit distance.

The distance is the Levenshtein distance over token ids divided by the length of the longer sequence: 0 for identical
sequences, 1 for sequences with nothing in common. One dynamic programme computes all pairs of a batch. This module
knows nothing about text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppo.types import Sample

from .samples import content_ids, truth_ids

SIGNATURE = "edit|levenshtein|unit:token|norm:max-length"


def edit_distances(candidates: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> list[int]:
    """The least number of insertions, deletions and substitutions that turn each candidate into its reference.

    Each row of the table is computed for the whole batch at once. Within a row, insertions chain:
    D[j] = min_k<=j (D'[k] + j - k), the cumulative minimum of D'[k] - k, plus j.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates but {len(references)} references")
    if not candidates:
        return []
    a, b = _padded(candidates, -1), _padded(references, -2)  # two fill values, so that padding never matches padding
    columns = np.arange(b.shape[1] + 1)
    row = np.tile(columns, (len(candidates), 1))
    rows = [row]
    for i in range(a.shape[1]):
        substituted = row[:, :-1] + (a[:, i : i + 1] != b)
        new = np.concatenate([row[:, :1] + 1, np.minimum(row[:, 1:] + 1, substituted)], axis=1)
        row = np.minimum.accumulate(new - columns, axis=1) + columns
        rows.append(row)
    return [int(rows[len(c)][k, len(r)]) for k, (c, r) in enumerate(zip(candidates, references, strict=True))]


def normalized_distances(candidates: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> list[float]:
    """Edit distance / length of the longer sequence, in [0, 1]. Two empty sequences have distance 0."""
    distances = edit_distances(candidates, references)
    lengths = [max(len(c), len(r), 1) for c, r in zip(candidates, references, strict=True)]
    return [distance / length for distance, length in zip(distances, lengths, strict=True)]


def edit_similarity(samples: Sequence[Sample]) -> list[float]:
    """Measure: 1 - normalised edit distance between the response without EOS and the true suffix, in [0, 1]."""
    distances = normalized_distances([content_ids(s) for s in samples], [truth_ids(s) for s in samples])
    return [1.0 - distance for distance in distances]


def _padded(sequences: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    table = np.full((len(sequences), max(map(len, sequences))), filler, dtype=np.int64)
    for i, sequence in enumerate(sequences):
        table[i, : len(sequence)] = sequence
    return table
