"""Splits without leaks: two rows that share an n-gram of tokens are never in different splits.

Rows that share a run of n tokens are linked. Linked rows form a group (union-find), and all rows of a group go to one
split. Runs are compared by a 64-bit hash. A collision can only join two groups; it can never cause a leak. This module
knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.types import Passage

NGRAM = 20


def leak_free_split(
    passages: Sequence[Passage],
    sizes: Mapping[str, int],
    *,
    seed: int,
    ngram: int = NGRAM,
    per_group: int = 1,
    with_pre_prefix: bool = True,
) -> dict[str, list[Passage]]:
    """Draw splits of exactly the given sizes, e.g. ``{"forget": 32, "forget_holdout": 32}``, without leaks.

    No two splits share a run of ``ngram`` tokens. At most ``per_group`` rows of a group are taken; with 1, no two rows
    of the result share a run at all. The pre-prefix counts too unless ``with_pre_prefix`` is off. The same seed gives
    the same splits. Rows keep their order. ValueError, with the figures, when the groups do not give enough rows.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"split {name!r} has size {size}; it must be at least 1")
    if per_group < 1:
        raise ValueError(f"per_group={per_group} must be at least 1")
    rows = [passage.ids if with_pre_prefix else passage.prefix + passage.suffix for passage in passages]
    labels = ngram_groups(rows, ngram)
    random = np.random.default_rng(seed)
    members = [random.permutation(rows_of)[:per_group] for rows_of in _members(labels)]
    order = sorted(random.permutation(len(members)), key=lambda group: -len(members[group]))  # large groups first
    room, chosen = dict(sizes), {name: [] for name in sizes}
    for group in order:
        name = max(room, key=lambda split: room[split])
        taken = members[group][: room[name]]
        chosen[name] += taken.tolist()
        room[name] -= len(taken)
    if missing := {name: count for name, count in room.items() if count}:
        raise ValueError(
            f"{len(passages)} rows fall into {len(members)} groups without a shared run of {ngram} tokens; with at "
            f"most {per_group} rows per group, {dict(sizes)} lacks {missing}: ask for fewer rows, raise per_group or "
            "give more data"
        )
    return {name: [passages[index] for index in sorted(indices)] for name, indices in chosen.items()}


def split_holdout(
    chunks: Sequence[Sequence[int]], *, holdout_share: float, seed: int, ngram: int = NGRAM
) -> tuple[list[list[int]], list[list[int]]]:
    """(retain, holdout): whole groups go to the holdout, in random order, if they still fit into its share.

    ValueError when no group fits, or when nothing would be retained.
    """
    if not 0 < holdout_share < 1:
        raise ValueError(f"holdout_share={holdout_share} must lie between 0 and 1")
    labels = ngram_groups(chunks, ngram)
    room, sizes = round(holdout_share * len(chunks)), np.bincount(labels)
    is_held = np.zeros(len(sizes), dtype=bool)
    for label in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes[label] <= room:
            is_held[label] = True
            room -= int(sizes[label])
    is_holdout = is_held[labels]
    if not is_holdout.any() or is_holdout.all():
        raise ValueError(
            f"{len(chunks)} retain chunks cannot be split with holdout_share={holdout_share} without a shared run of "
            f"{ngram} tokens; give more text or another share"
        )
    retain = [list(chunk) for chunk, held in zip(chunks, is_holdout, strict=True) if not held]
    return retain, [list(chunk) for chunk, held in zip(chunks, is_holdout, strict=True) if held]


def overlapping(rows: Sequence[Sequence[int]], others: Sequence[Sequence[int]], *, ngram: int = NGRAM) -> list[int]:
    """Indices of the rows that share a run of ``ngram`` tokens with any of the others.

    A shorter row counts if all of it stands in one of them. Example (ngram 2): [a b c] and [x b c] share "b c".
    """
    found = []
    for length in {min(ngram, len(row)) for row in rows if len(row)}:
        known = [run_hashes(_ids(other), length) for other in others if len(other) >= length]
        sought = [(i, run_hashes(_ids(row), length)) for i, row in enumerate(rows) if min(ngram, len(row)) == length]
        owners = np.concatenate([np.full(len(runs), i) for i, runs in sought])
        is_shared = np.isin(np.concatenate([runs for _, runs in sought]), np.concatenate(known or [_ids([])]))
        found += np.unique(owners[is_shared]).tolist()
    return sorted(found)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of every group, in order. One sort finds all of them: there may be as many groups as rows."""
    if not len(labels):
        return []
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])


def _ids(row: Sequence[int]) -> np.ndarray:
    return np.asarray(row, dtype=np.uint64)


def ngram_groups(rows: Sequence[Sequence[int]], ngram: int = NGRAM) -> np.ndarray:
    """The group label of every row, int64 [rows]. Labels count from 0 in the order of each group's first row.

    Rows that share a run have the same label. A row shorter than ``ngram`` is one run, so it is linked only to rows
    equal to it.
    """
    if ngram < 1:
        raise ValueError(f"ngram={ngram} must be at least 1")
    hashes, owners = [], []
    for index, row in enumerate(rows):
        runs = run_hashes(np.asarray(row, dtype=np.uint64), ngram)
        hashes.append(runs)
        owners.append(np.full(len(runs), index))
    if not hashes:
        return np.zeros(0, dtype=np.int64)
    flat, owner = np.concatenate(hashes), np.concatenate(owners)
    order = np.argsort(flat, kind="stable")
    is_same = flat[order][1:] == flat[order][:-1]
    links = np.stack([owner[order][:-1][is_same], owner[order][1:][is_same]], axis=1)
    return connected(len(rows), np.unique(links, axis=0))


def run_hashes(row: np.ndarray, ngram: int) -> np.ndarray:
    """A 64-bit hash of every run of ``ngram`` tokens, uint64 [len(row)-ngram+1]. A shorter row is one run."""
    length = min(ngram, len(row))
    mixed = (row + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)  # spread the ids over all 64 bits
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    runs = np.full(len(row) - length + 1, length, dtype=np.uint64)
    for offset in range(length):
        runs = runs * np.uint64(0x100000001B3) + mixed[offset : offset + len(runs)]
    return runs


def connected(count: int, links: np.ndarray) -> np.ndarray:
    """Labels of the connected components of ``count`` nodes, int64 [count], numbered by their smallest node."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for first, second in links.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    roots = [root(node) for node in range(count)]
    return np.unique(roots, return_inverse=True)[1].astype(np.int64) if count else np.zeros(0, dtype=np.int64)
