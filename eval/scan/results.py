"""The files of a scan: what was found, window by window and span by span, and a summary without a word of text.

    scan.jsonl      private: the documents, the findings with their texts, and what was skipped, a row each
    windows.jsonl   every window that was measured: where it stands, and its numbers; no text
    summary.json    counts, rates, the verdict; no text and no name of a file
    passes/ …       columns of tokens, for ``--resume`` and ``--against``; no text

All of them are readable by their owner alone. This module knows rows and files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ppo.io.console import shown_errors
from ppo.io.files import flush, naming_file
from ppo.io.plain import is_whole
from ppo.io.rows import jsonl_rows
from ppo.io.surrogates import without_surrogates
from ppo.io.visible import visible

from ..intervals import share_interval
from .judge import MEMORISED, OTHER, PREDICTABLE, UNJUDGED

Row = dict[str, Any]
SCAN, WINDOWS, SUMMARY, PAGE = "scan.jsonl", "windows.jsonl", "summary.json", "scan.html"
LIKELY_SAMPLES = 100  # a window that so many draws hold with probability 1/2 is likely to be drawn
_TEXT, _WHOLE = (str,), (int,)
_SHAPES: dict[str, dict[str, tuple[type, ...]]] = {
    "finding": {"id": _TEXT, "path": _TEXT, "document": _TEXT, "place": _WHOLE, "start": _WHOLE, "stop": _WHOLE,
                "status": _TEXT, "group": _WHOLE, "first_of_group": _TEXT, "text": _TEXT, "prompt": _TEXT,
                "prompt_tokens": _WHOLE, "reading": _WHOLE, "layer": _WHOLE, "copies": _WHOLE, "right": (int, float),
                "log_pz": (int, float), "lines": (list,), "tokens": (list,), "against": (list,), "personal": (list,)},
    "document": {"path": _TEXT, "document": _TEXT, "characters": _WHOLE, "tokens": _WHOLE, "heat": _TEXT},
}  # fmt: skip


@contextmanager
def private_text(path: Path) -> Iterator[TextIO]:
    """A text file that its owner alone can read. It has its name once all of it is written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with naming_file(path):
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8", newline="\n") as file:
                yield file
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON."""
    return without_surrogates(json.dumps(row, ensure_ascii=False)) + "\n"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a private file of rows."""
    with private_text(path) as file:
        file.writelines(map(line, rows))


def write_private_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a private JSON file."""
    with private_text(path) as file:
        file.write(without_surrogates(json.dumps(values, indent=2, ensure_ascii=False)) + "\n")


class WindowCounts:
    """Counts windows by the length of their prefix and their reading: each once, and none that its context shows."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str], list[int]] = {}
        self.left_out = 0  # windows that stand earlier in their own context

    def add(self, row: Mapping[str, Any]) -> None:
        """Count the row of a window."""
        if row["is_again"]:
            return
        if row["is_copied"]:
            self.left_out += 1
            return
        counts = self._counts.setdefault((row["prefix"], row["reading"]), [0, 0, 0])
        is_likely = [row[name] is not None and row[name] <= LIKELY_SAMPLES for name in ("samples", "samples_top_k")]
        counts[0] += 1
        counts[1] += row["exact"]
        counts[2] += any(is_likely)

    def rows(self) -> list[Row]:
        """A row for each prefix length and reading: windows, the shares that are recited and likely, with intervals."""
        return [
            {"prefix": length, "reading": reading, "windows": count, "exact": exact, "exact_share": exact / count,
             "exact_interval": list(share_interval(exact, count)),
             f"in_{LIKELY_SAMPLES}_samples": likely, f"in_{LIKELY_SAMPLES}_samples_share": likely / count}
            for (length, reading), (count, exact, likely) in sorted(self._counts.items())
        ]  # fmt: skip


def summarise(
    rows: Sequence[Mapping[str, Any]], windows: WindowCounts, *, verdict: Row, controls: Row, facts: Mapping[str, Any]
) -> Row:
    """The content of summary.json. ``rows``: of scan.jsonl. It holds no text and no names."""
    findings = [row for row in rows if row["type"] == "finding"]
    documents = [row for row in rows if row["type"] == "document"]
    memorised = [row for row in findings if row["status"] == MEMORISED]
    kinds = [mark["kind"] for row in memorised for mark in row["personal"]]
    against = [reason for row in findings for reason in row["against"]]
    return {
        "verdict": verdict,
        "findings": {name: sum(row["status"] == name for row in findings)
                     for name in (MEMORISED, PREDICTABLE, OTHER, UNJUDGED)},
        "different": len({row["group"] for row in memorised}),
        "tokens": sum(row["tokens"][1] - row["tokens"][0] for row in memorised),
        "characters": sum(row["stop"] - row["start"] for row in memorised),
        "forms": sum(row["is_form"] for row in memorised),
        "personal": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "against": {reason: against.count(reason) for reason in sorted(set(against))},
        "corpus": {"documents": len(documents), "characters": sum(row["characters"] for row in documents),
                   "tokens": sum(row["tokens"] for row in documents),
                   "documents_with_findings": len({row["place"] for row in memorised})},
        "controls": controls, "windows": windows.rows(),
        "windows_copied": windows.left_out, **facts,
    }  # fmt: skip


@shown_errors()
def read_scan(folder: Path) -> tuple[list[Row], list[Row]]:
    """(documents, findings) of scan.jsonl. ValueError where it is missing or damaged."""
    path = folder / SCAN
    if not path.is_file():
        raise ValueError(f"{visible(str(folder))} holds no finished scan: there is no {SCAN} in it")
    found: dict[str, list[Row]] = {"document": [], "finding": []}
    for place, row in jsonl_rows(path):
        kind = row.get("type")
        if kind == "skipped":
            continue
        if not isinstance(kind, str) or kind not in found or not _is_row(row, kind):
            raise ValueError(f"{place} is damaged: it is no row of a scan")
        found[kind].append(row)
    return found["document"], found["finding"]


def _is_row(row: Row, kind: str) -> bool:
    """Whether a row that was read has what this program reads of it."""
    if not all(isinstance(row.get(name), kinds) for name, kinds in _SHAPES[kind].items()):
        return False
    if kind == "document":
        return not set(row["heat"]) - set("0123456789")
    numbers = [*row["lines"], *row["tokens"], *(row[n] for n in ("place", "start", "stop", "reading", "layer"))]
    if len(row["lines"]) != 2 or len(row["tokens"]) != 2 or not all(is_whole(n) and n >= 0 for n in numbers):
        return False
    marks = [mark if isinstance(mark, dict) else {} for mark in row["personal"]]
    return all(isinstance(reason, str) for reason in row["against"]) and all(
        isinstance(m.get("kind"), str) and is_whole(m.get("start")) and is_whole(m.get("end")) for m in marks
    )
