"""Deduplication: find and remove exact repeated spans with a suffix array (Lee et al. 2022, Kandpal et al. 2022).

Repeated windows are found by their hashes, in linear time plus one sort, and then compared symbol by symbol. When two
different windows share a hash, a suffix array, sorted no deeper than the span, decides instead. The result is therefore
exact, and the time is near-linear for any text.

A window of ``length`` symbols is a repeat if it occurs earlier, in the same or in an earlier document. Its symbols are
removed, except those that overlap its own first occurrence. Symbols are token ids, or the characters of texts. No
window crosses a document border. This module knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LENGTH = 50


@dataclass(frozen=True)
class RemovedSpan:
    """A removed span: symbols ``start`` to ``stop`` (exclusive) of document number ``document``.

    Its first symbols repeat those of document ``first_document`` from ``first_start`` on.
    """

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
    """Token ids without repeated spans of at least ``length`` tokens, and the report. A document may become empty."""
    arrays = [np.asarray(document, dtype=np.int64) for document in documents]
    kept, report = _remove_repeats(arrays, length)
    return [array.tolist() for array in kept], report


def deduplicate_texts(texts: Sequence[str], *, length: int = LENGTH) -> tuple[list[str], DedupReport]:
    """Texts without repeated spans of at least ``length`` characters (Unicode code points), and the report."""
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
    opens = np.maximum(windows, first[windows] + length)  # a first occurrence stays, even if a repeat overlaps it
    steps = np.zeros(len(symbols) + 1, dtype=np.int64)  # +1 where a repeat begins, -1 where it ends
    np.add.at(steps, opens, 1)
    np.add.at(steps, windows + length, -1)
    is_removed = np.cumsum(steps)[:-1] > 0
    source = np.full(len(symbols), -1, dtype=np.int64)  # the position that the symbol at an opening repeats
    source[opens] = first[windows] + opens - windows
    kept = [
        document[~is_removed[start : start + size]]
        for document, start, size in zip(documents, starts, lengths, strict=False)
    ]
    spans = _spans(is_removed, source, starts)
    return kept, DedupReport(length, int(lengths.sum()), int(is_removed.sum()), spans)


def _spans(is_removed: np.ndarray, source: np.ndarray, starts: np.ndarray) -> list[RemovedSpan]:
    """The longest removed spans in document coordinates. Separators are never removed, so no span crosses a border."""
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
    """All documents in one array, each followed by a separator of its own (-1, -2, …)."""
    if any((document < 0).any() for document in documents):
        raise ValueError("documents must hold ids of at least 0; negative numbers separate documents")
    parts = [part for index, document in enumerate(documents) for part in (document, [-1 - index])]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)


def first_occurrences(symbols: np.ndarray, length: int) -> np.ndarray:
    """For every position, the first position with the same window of ``length`` symbols, int64 [len(symbols)].

    A window that extends past the end, or that holds a separator (a negative number), is its own first occurrence.
    Example: ``[5, 6, 5, 6, 9]``, length 2 -> ``[0, 1, 0, 3, 4]``.
    """
    result = np.arange(len(symbols))
    count = len(symbols) - length + 1
    if count < 2:
        return result
    is_separator = symbols < 0
    separators = np.concatenate([[0], np.cumsum(is_separator)])
    windows = np.flatnonzero(separators[length:] == separators[:count])  # the windows without a separator
    result[windows] = _smallest(window_hashes(symbols, length)[windows], windows)
    if not _are_equal(symbols, result, length):  # two windows share a hash: sort the symbols themselves
        result[windows] = _smallest(ranks(np.where(is_separator, -1, symbols), length)[windows], windows)
    return result


def _smallest(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """For every position, the smallest position with the same key, int64. Both arguments have the same length."""
    order = np.argsort(keys)
    in_order = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]])) if len(keys) else order
    firsts = np.minimum.reduceat(positions[order], begins) if len(keys) else positions
    found = np.empty(len(positions), dtype=np.int64)
    found[order] = np.repeat(firsts, np.diff(np.append(begins, len(keys))))
    return found


def window_hashes(symbols: np.ndarray, length: int) -> np.ndarray:
    """A hash of every window of ``length`` symbols, uint64 [n - length + 1].

    Equal windows have equal hashes. Different windows may share a hash. The hash is a polynomial modulo 2^64, built
    from windows of 1, 2, 4, … symbols in O(n log(length)) time.
    """
    base = np.uint64(0x9E3779B97F4A7C15)  # odd; no symbol is 0 after mixing
    hashes = (symbols.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(29)
    width = 1
    while width < length:
        step = min(width, length - width)
        factor = np.uint64(pow(int(base), step, 2**64))
        hashes = hashes[:-step] * factor + (hashes[step:] ^ (hashes[step:] >> np.uint64(31)))
        width += step
    return hashes


def _are_equal(symbols: np.ndarray, first: np.ndarray, length: int) -> bool:
    """Whether every window equals its alleged first occurrence.

    When the window one position earlier has its alleged first occurrence one position earlier too, only the last symbol
    remains to be compared.
    """
    places = np.flatnonzero(first < np.arange(len(first)))
    source = first[places]
    goes_on = np.zeros(len(places), dtype=bool)
    goes_on[1:] = (places[1:] == places[:-1] + 1) & (source[1:] == source[:-1] + 1)
    last = symbols[places + length - 1] == symbols[source + length - 1]
    heads, sources = places[~goes_on], source[~goes_on]
    return bool(last.all()) and all(
        bool((symbols[heads + offset] == symbols[sources + offset]).all()) for offset in range(length)
    )


def suffix_array(symbols: np.ndarray) -> np.ndarray:
    """Start positions of all suffixes in lexicographic order, int64 [n]. A suffix comes before its continuations."""
    return np.argsort(ranks(symbols, len(symbols)))


def ranks(symbols: np.ndarray, depth: int) -> np.ndarray:
    """The rank of every suffix when all are sorted by their first ``depth`` symbols, int64 [n].

    Suffixes that agree in these symbols share the lowest of their ranks. A suffix that ends sooner comes before its
    continuations. The algorithm is prefix doubling (Manber and Myers): the first ranks use as many symbols as fit into
    62 bits, and every round doubles that number, up to ``depth``, by combining two ranks of half the width. Suffixes
    with a unique rank are not sorted again (Larsson and Sadakane). A round takes O(n log n), and there are at most
    log2(depth) rounds for any text.

    Example: [7, 3, 7, 3], depth 1 -> [2, 0, 2, 0]; depth 4 -> [3, 1, 2, 0].
    """
    size = len(symbols)
    packed, width = _packed(symbols, depth)
    _, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - counts)[inverse].astype(np.int64)
    shared = np.flatnonzero(counts[inverse] > 1)  # the suffixes whose rank is not yet unique
    while width < depth and len(shared):
        step = min(width, depth - width)
        tail = np.zeros(len(shared), dtype=np.int64)
        has_tail = shared + step < size
        tail[has_tail] = rank[shared[has_tail] + step] + 1
        key = rank[shared] * (size + 1) + tail
        order = np.argsort(key)
        shared, key = shared[order], key[order]
        is_new = np.concatenate([[True], key[1:] != key[:-1]])
        begins = np.flatnonzero(is_new)
        sizes = np.diff(np.append(begins, len(shared)))
        old = rank[shared]
        is_old = np.concatenate([[True], old[1:] != old[:-1]])
        old_begins = np.maximum.accumulate(np.where(is_old, np.arange(len(shared)), 0))
        rank[shared] = old + np.repeat(begins, sizes) - old_begins
        shared = shared[np.repeat(sizes, sizes) > 1]
        width += step
    return rank


def _packed(symbols: np.ndarray, depth: int) -> tuple[np.ndarray, int]:
    """The first symbols of every suffix packed into one number, int64 [n], and how many symbols that is.

    The numbers sort as the symbols do.
    """
    values, codes = np.unique(symbols, return_inverse=True)
    bits = len(values).bit_length()  # code 0 marks the end
    width = max(1, min(62 // bits if bits else 1, depth))
    padded = np.concatenate([codes.astype(np.int64) + 1, np.zeros(width - 1, dtype=np.int64)])
    packed = np.zeros(len(symbols), dtype=np.int64)
    for offset in range(width):
        packed = (packed << bits) | padded[offset : offset + len(symbols)]
    return packed, width
