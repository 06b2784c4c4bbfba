"""The points of an experiment: one measured variant, method or size with one seed each, in a folder that can go on.

    points/KEY.json   a point that was measured here, written whole or not at all; processes that work on different
                      points may write side by side
    points.jsonl      finished points, a line a point, sorted by key: the form in which ``results/`` keeps them

Every reader takes both. A file counts in place of a line with the same key: a point is measured again only when its
line was measured with other settings, so the file is newer. ``python -m benchmarks.points FOLDER`` packs the files into
points.jsonl. This module does not know what a point holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppo.io.files import read_json, replace_text, write_json
from ppo.io.rows import jsonl_rows
from ppo.io.visible import visible

PACKED, FILES = "points.jsonl", "points"
MOST_POINTS = 5000  # of a folder
MOST_BYTES = 256 * 2**20  # of all its files together
Point = dict[str, Any]


def stored_points(folder: Path) -> list[Point]:
    """All points of a folder, sorted by key; each has its key under "key". ValueError names a damaged file or line.

    A folder with more than ``MOST_POINTS`` points, or of more than ``MOST_BYTES``, is refused before it is read.
    """
    files = _files(folder)
    num_bytes = sum(file.stat().st_size for file in [*files, folder / PACKED] if file.is_file())
    if len(files) > MOST_POINTS or num_bytes > MOST_BYTES:
        raise ValueError(
            f"{visible(str(folder))} has {len(files)} files of points, {num_bytes} bytes in all; at most {MOST_POINTS} "
            f"files and {MOST_BYTES} bytes are read"
        )
    found = _packed(folder / PACKED) | {file.stem: _read(file) for file in files}
    return [found[key] for key in sorted(found)]


def find_point(folder: Path, key: str) -> Point | None:
    """One point of a folder; None where it is not there. ValueError names a damaged file or line."""
    file = _file(folder, key)
    return _read(file) if file.is_file() else _packed(folder / PACKED).get(key)


def read_point(folder: Path, key: str) -> Point:
    """One point of a folder. ValueError where it is not there or damaged."""
    point = find_point(folder, key)
    if point is None:
        raise ValueError(f"{visible(str(folder))} holds no point {key}")
    return point


def store_point(folder: Path, key: str, point: Mapping[str, Any]) -> None:
    """Write a point's file, whole or not at all. It counts from now on, whatever points.jsonl holds under this key."""
    (folder / FILES).mkdir(parents=True, exist_ok=True)
    write_json(_file(folder, key), point)


def place_of(folder: Path, key: str) -> str:
    """Where a point of a folder stands, for an error: its file, or the packed file and its key."""
    file = _file(folder, key)
    return visible(str(file)) if file.is_file() else f"{visible(str(folder / PACKED))}, point {key!r:.80}"


def pack(folder: Path) -> int:
    """Move every file into points.jsonl, and return the number of points there. ValueError for a folder without points.

    Files go after points.jsonl is whole, so a kill loses nothing. No process may be measuring into the folder.
    """
    files, points = _files(folder), stored_points(folder)
    if not points:
        raise ValueError(
            f"{visible(str(folder))} holds no points: there is neither {PACKED} nor a file {FILES}/KEY.json in it"
        )
    replace_text(folder / PACKED, "".join(json.dumps(point, ensure_ascii=False) + "\n" for point in points))
    for file in files:
        file.unlink()
    with suppress(OSError):  # not there, or something else lies in it
        (folder / FILES).rmdir()
    return len(points)


def _file(folder: Path, key: str) -> Path:
    return folder / FILES / f"{key}.json"


def _files(folder: Path) -> list[Path]:
    return sorted((folder / FILES).glob("*.json"))


def _read(file: Path) -> Point:
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError(f"{visible(str(file))} is damaged: it holds a {type(content).__name__}")
    except ValueError as error:
        raise ValueError(f"{error}; delete it to measure the point again") from error
    return {"key": file.stem} | content | {"key": file.stem}


def _packed(file: Path) -> dict[str, Point]:
    """The points of points.jsonl by their keys; {} where there is no such file."""
    found: dict[str, Point] = {}
    for place, point in jsonl_rows(file) if file.is_file() else ():
        key = point.get("key")
        if not isinstance(key, str) or key in found:
            raise ValueError(f"{place} is damaged: its key {key!r:.80} must be a text that no other line has")
        found[key] = point
        if len(found) > MOST_POINTS:
            raise ValueError(f"{place} is one point too many: at most {MOST_POINTS} are read")
    return found
