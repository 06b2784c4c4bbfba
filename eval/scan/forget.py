"""The findings of a scan as a forget set that ``demem.py run --data`` takes, with neighbours that are to be kept.

Each text to forget stands in it once, however many copies of it were found, wrapped or quoted: the longest that is
memorised, whole, in passages of pre-prefix, prefix and suffix, each as long as a model was asked with. Records of one
form share much and are still several: each of them is forgotten. To be kept are
predictable texts that the model recites (group "keep", kind "recited"), and texts next to the findings that it does not
recite (kind "neighbour"). Nothing is kept that holds a piece of what is forgotten, and no neighbour that holds one of
any finding. What is recited and was not asked for is neither forgotten nor kept. What is personal is named as secrets
where each passage has some. This module knows rows and readings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from .judge import MEMORISED, PREDICTABLE
from .near import Near, signs_of
from .protocols import Reading, tokens_at
from .results import write_rows
from .spans import runs

Row = dict[str, Any]
MOST_NEIGHBOURS = 256


def write_forget_set(
    path: Path,
    readings: Iterable[Reading],
    findings: Sequence[Mapping[str, Any]],
    *,
    prefix: int,
    suffix: int,
    decode: Callable[[Sequence[int]], str],
) -> dict[str, int]:
    """Write the file, readable by its owner alone. Returns the number of rows of each kind.

    ``readings``: those of the scan. ``findings``: rows of scan.jsonl. ``prefix``, ``suffix``: lengths in tokens.
    ValueError where there is nothing to forget.
    """
    of_document: dict[int, list[Mapping[str, Any]]] = {}
    for row in findings:
        of_document.setdefault(row["place"], []).append(row)
    chosen = _chosen(findings)
    if not any(row["status"] == MEMORISED for row in findings):
        raise ValueError(f"{path} is not written: the scan found nothing to forget")
    near_any = Near(row["text"] for row in findings)
    rows: list[Row] = []
    near: list[list[int]] = []
    spare: list[list[int]] = []
    size = 2 * prefix + suffix
    for place, (_, group) in enumerate(groupby(readings, key=lambda reading: id(reading.document))):
        together, mine = list(group), of_document.get(place, [])
        for row in mine:
            if row["id"] in chosen:
                rows += _rows_of(row, together[row["reading"]], prefix=prefix, suffix=suffix, decode=decode)
        free = _free(together[0], mine, near_any, size)
        near += islice(free, max(0, min(len(mine), MOST_NEIGHBOURS - len(near))))
        spare += islice(free, max(0, MOST_NEIGHBOURS - len(spare) - len(near)))
    if not all(row.get("secrets") for row in rows if row["group"] == "forget"):
        for row in rows:  # named for some alone, the others would be taken to have none
            row.pop("secrets", None)
    count = min(MOST_NEIGHBOURS, max(1, sum(row["group"] == "forget" for row in rows)))
    for number, ids in enumerate([*near, *spare][:count]):
        parts = _parts(ids, prefix=prefix, suffix=suffix)
        rows.append(_row(f"n{number + 1:05d}", "keep", "neighbour", parts, (), decode))
    write_rows(path, rows)
    return {
        "forget": sum(row["group"] == "forget" for row in rows),
        **{kind: sum(row["kind"] == kind for row in rows) for kind in ("recited", "neighbour")},
    }


def _chosen(findings: Sequence[Mapping[str, Any]]) -> set[str]:
    """The ids of the findings that are written.

    They are the memories whose letters and digits stand whole in no longer memory of their group, and the first
    predictable text of a group without memories, if it holds no piece of one.
    """
    memories = [row for row in findings if row["status"] == MEMORISED]
    forgotten: dict[int, list[tuple[str, str]]] = {}
    for row in sorted(memories, key=lambda row: row["tokens"][0] - row["tokens"][1]):
        signs, others = signs_of(row["text"]), forgotten.setdefault(row["group"], [])
        if not any(signs in other for other, _ in others):
            others.append((signs, row["id"]))
    known = Near(row["text"] for row in memories)
    kept: dict[int, Mapping[str, Any]] = {}
    for row in findings:
        if row["status"] == PREDICTABLE and row["group"] not in forgotten and not known.holds(row["text"]):
            kept.setdefault(row["group"], row)
    return {name for pairs in forgotten.values() for _, name in pairs} | {row["id"] for row in kept.values()}


def _rows_of(
    row: Mapping[str, Any], reading: Reading, *, prefix: int, suffix: int, decode: Callable[[Sequence[int]], str]
) -> Iterator[Row]:
    """The passages of a finding, from its prompt to its end; their suffixes reach to the end of it."""
    start, stop = row["tokens"]
    ids = reading.ids[start - row["prompt_tokens"] : stop].tolist()
    group, kind = ("forget", "memorised") if row["status"] == MEMORISED else ("keep", "recited")
    secrets = [row["text"][mark["start"] : mark["end"]] for mark in row["personal"]] if group == "forget" else []
    cuts = list(_cuts(len(ids), prefix=prefix, suffix=suffix))
    for number, (low, high) in enumerate(cuts):
        parts = _parts(ids[low:high], prefix=prefix, suffix=suffix)
        tail = " ".join(decode(parts[2]).split())
        inside = [" ".join(s.split()) for s in secrets if " ".join(s.split()) in tail]
        name = row["id"] if len(cuts) == 1 else f"{row['id']}.{number + 1}"
        yield _row(name, group, kind, parts, inside, decode)


def _cuts(size: int, *, prefix: int, suffix: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the passages of a text of ``size`` tokens: each begins a prefix before the last one's end.

    Example: prefix 2, suffix 3, 12 tokens -> (0, 7), (5, 12). The last ends with the text; the first may be shorter.
    """
    found: list[tuple[int, int]] = []
    stop = size
    while stop > prefix or not found:
        found.append((max(0, stop - 2 * prefix - suffix), stop))
        stop -= prefix + suffix
    yield from reversed(found)


def _parts(ids: Sequence[int], *, prefix: int, suffix: int) -> tuple[list[int], list[int], list[int]]:
    """Pre-prefix, prefix and suffix. A text that is too short for both has a shorter suffix, at least half of it."""
    size = min(suffix, max(len(ids) - prefix, -(-len(ids) // 2)))
    first = max(0, len(ids) - size - prefix)
    return list(ids[:first]), list(ids[first : len(ids) - size]), list(ids[len(ids) - size :])


def _row(
    name: str,
    group: str,
    kind: str,
    parts: tuple[list[int], list[int], list[int]],
    secrets: Sequence[str],
    decode: Callable[[Sequence[int]], str],
) -> Row:
    """A row of the data file: ids, which are what counts, and their texts for readers."""
    named = dict(zip(("pre_prefix", "prefix", "suffix"), parts, strict=True))
    texts = {part: decode(ids) for part, ids in named.items()}
    return {
        "id": name, "group": group, "kind": kind, **texts, **{f"{part}_ids": ids for part, ids in named.items()},
        **({"secrets": list(dict.fromkeys(secrets))} if secrets else {}),
    }  # fmt: skip


def _free(reading: Reading, findings: Sequence[Mapping[str, Any]], known: Near, size: int) -> Iterator[list[int]]:
    """Pieces of ``size`` tokens of a reading that touch no finding, no prompt of one and no copy, side by side."""
    free = ~known.tokens(reading)
    for row in findings:
        free[tokens_at(reading, row["start"] - len(row["prompt"]), row["stop"])] = False
    for first, last in runs(free):
        for start in range(first, last - size + 1, size):
            yield reading.ids[start : start + size].tolist()
