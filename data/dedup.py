"""Deduplication: find and remove exact repeated spans with a suffix array (Lee et al. 2022, Kandpal et al. 2022).

A window of ``length`` symbols that stood earlier, in the same or in an earlier document, is a repeat, and its symbols
are removed, but for those that it shares with its own first occurrence. Symbols are token ids, or the characters of
texts. No window crosses a document border. This module knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LENGTH = 50


@dataclass(frozen=True)
class RemovedSpan:
    """Symbols ``start`` to ``stop`` (exclusive) of a document; the first of them repeat those from ``first_start`` of
    document ``first_document``."""

    document: int
    start: int
    stop: int
    first_document: int
    first_start: int


@dataclass(frozen=True)
class DedupReport:
    """What was removed, in symbols (tokens or characters)."""

    length: int
    total: int
    removed: int
    spans: list[RemovedSpan]


def deduplicate(documents: Sequence[Sequence[int]], *, length: int = LENGTH) -> tuple[list[list[int]], DedupReport]:
    """Token ids without repeated spans of at least ``length`` tokens, and the report; a document may end up empty."""
    arrays = [np.asarray(document, dtype=np.int64) for document in documents]
    kept, report = _remove_repeats(arrays, length)
    return [array.tolist() for array in kept], report


def deduplicate_texts(texts: Sequence[str], *, length: int = LENGTH) -> tuple[list[str], DedupReport]:
    """The same for texts; ``length`` is in characters (Unicode code points)."""
    arrays = [np.array(list(map(ord, text)), dtype=np.int64) for text in texts]
    kept, report = _remove_repeats(arrays, length)
    return ["".join(map(chr, array.tolist())) for array in kept], report


def _remove_repeats(documents: Sequence[np.ndarray], length: int) -> tuple[list[np.ndarray], DedupReport]:
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])  # one separator after each document
    symbols = joined(documents)
    first = first_occurrences(symbols, length)
    windows = np.flatnonzero(first < np.arange(len(symbols)))
    opens = np.maximum(windows, first[windows] + length)  # a first occurrence stays, also where a repeat overlaps it
    steps = np.zeros(len(symbols) + 1, dtype=np.int64)  # +1 where a repeat opens, -1 where it closes
    np.add.at(steps, opens, 1)
    np.add.at(steps, windows + length, -1)
    is_removed = np.cumsum(steps)[:-1] > 0
    source = np.full(len(symbols), -1, dtype=np.int64)  # where the symbol at an opening was copied from
    source[opens] = first[windows] + opens - windows
    kept = [
        document[~is_removed[start : start + size]]
        for document, start, size in zip(documents, starts, lengths, strict=False)
    ]
    spans = _spans(is_removed, source, starts)
    return kept, DedupReport(length, int(lengths.sum()), int(is_removed.sum()), spans)


def _spans(is_removed: np.ndarray, source: np.ndarray, starts: np.ndarray) -> list[RemovedSpan]:
    """Maximal removed stretches in document coordinates; separators are never removed, so none crosses a border."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_removed.astype(np.int8), [0]])))
    opens, closes = edges[::2], edges[1::2]
    where = np.searchsorted(starts, opens, side="right") - 1
    sources = source[opens]
    source_documents = np.searchsorted(starts, sources, side="right") - 1
    columns = (
        where,
        opens - starts[where],
        closes - starts[where],
        source_documents,
        sources - starts[source_documents],
    )
    return [RemovedSpan(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def joined(documents: Sequence[np.ndarray]) -> np.ndarray:
    """All documents in one array, each followed by a separator that occurs nowhere else (-1, -2, …)."""
    if any((document < 0).any() for document in documents):
        raise ValueError("documents must hold ids of at least 0; negative numbers separate documents")
    parts = [part for index, document in enumerate(documents) for part in (document, [-1 - index])]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)


def first_occurrences(symbols: np.ndarray, length: int) -> np.ndarray:
    """For every position the first one whose window of ``length`` symbols is the same, int64 [len(symbols)].

    Neighbours in the suffix array that agree in ``length`` symbols belong to one run; its smallest position is first.
    Windows that run over the end are their own first occurrence. ``[5, 6, 5, 6, 9]``, length 2: ``[0, 1, 0, 3, 4]``.
    """
    result = np.arange(len(symbols))
    count = len(symbols) - length + 1
    if count < 2:
        return result
    order = suffix_array(symbols)
    order = order[order < count]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = ~_agree(symbols, order[:-1], order[1:], length)
    run = np.cumsum(is_new) - 1
    smallest = np.minimum.reduceat(order, np.flatnonzero(is_new))
    result[order] = smallest[run]
    return result


def _agree(symbols: np.ndarray, first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
    """Whether the windows at two lists of positions are equal, bool [len(first)]; symbol by symbol to save memory."""
    is_equal = np.ones(len(first), dtype=bool)
    for offset in range(length):
        is_equal &= symbols[first + offset] == symbols[second + offset]
    return is_equal


def suffix_array(symbols: np.ndarray) -> np.ndarray:
    """Start positions of all suffixes in lexicographic order, int64 [n].

    Prefix doubling (Manber and Myers): ranks by 1, 2, 4, … symbols, each from two ranks of half the length, until all
    ranks differ; O(n log n) a round and as many rounds as the longest repeat has bits. A shorter suffix comes first.
    """
    size = len(symbols)
    if size == 0:
        return np.zeros(0, dtype=np.int64)
    rank = np.unique(symbols, return_inverse=True)[1].astype(np.int64) + 1
    width = 1
    while True:
        tail = np.zeros(size, dtype=np.int64)  # 0: the suffix has ended
        tail[: max(0, size - width)] = rank[width:]
        key = rank * (size + 2) + tail
        order = np.argsort(key, kind="stable")
        is_new = np.concatenate([[True], key[order][1:] != key[order][:-1]])
        rank = np.empty(size, dtype=np.int64)
        rank[order] = np.cumsum(is_new)
        if is_new.all():
            return order
        width *= 2
