"""Which files of a corpus are read, in which order, and which are left out, each with the reason.

Folders are walked to the bottom. A folder's link is followed only to a file inside that folder. Every file is opened
once here, to find its encoding or that it is no text, so that nothing comes as a surprise hours later. This module
knows files, nothing about what stands in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from importlib.util import find_spec
from pathlib import Path

from data.corpus.encoding import find_encoding
from data.corpus.streams import byte_chunks, is_packed
from ppo.io.console import shown_errors
from ppo.io.plain_files import check_plain
from ppo.io.visible import visible

MOST_FILES = 1_000_000
LEFT_OUT = (".git", ".hg", ".svn")  # folders of version control: packed copies of the files beside them
KINDS = {
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".tab": "csv",
    ".parquet": "parquet",
}  # fmt: skip
WHOLE_BYTES = {"html": 2**23, "json": 2**25}  # of a file that cannot be read in pieces
PARQUET = "Parquet is read by pyarrow, which is not installed: pip install 'ppo-lm[parquet]'"


@dataclass(frozen=True)
class CorpusFile:
    """A file that can be read. ``name``: how it is called in what is found (:class:`Corpus`).

    ``kind``: "text", "html", "json", "jsonl", "csv" or "parquet". ``encoding`` and ``how`` it is known:
    :class:`data.corpus.encoding.Encoding`; both "" for Parquet. ``num_bytes``: its length, unpacked.
    """

    path: Path
    name: str
    kind: str
    encoding: str
    how: str
    num_bytes: int


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The files in the order of their names, each once, and what was left out.

    A file has its path below the folder that was given, with "/"; of several folders, or as a file that was given
    itself, its path as given.
    """

    files: tuple[CorpusFile, ...]
    skipped: tuple[Skipped, ...]


@shown_errors()
def corpus_files(given: Sequence[str | Path]) -> Corpus:
    """The files of folders, files and globs such as "books/**/*.txt".

    ValueError for a path that does not exist, a glob without a match, for Parquet without pyarrow, and when there is
    nothing to read; it names what was left out.
    """
    if not given:
        raise ValueError("no corpus was given; name at least one folder or file")
    found: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    for one in given:
        for path in _matches(str(one)):
            if path.is_dir():
                is_alone = len(given) == 1 and path == Path(one)
                _walk(path, Path() if is_alone else path, found, skipped)
            else:
                found.setdefault(_named(path), path)
    files = [read for name, path in _each_once(found, skipped) if (read := _looked_at(path, name, skipped))]
    if not files:
        shown = "; ".join(f"{name}: {reason}" for name, reason in sorted(skipped.items())[:5])
        raise ValueError(f"{', '.join(map(str, given))} holds no text to read{': ' if shown else ''}{shown}")
    return Corpus(tuple(files), tuple(Skipped(name, reason) for name, reason in sorted(skipped.items())))


def _matches(given: str) -> list[Path]:
    """The path itself, or what a glob finds, in order."""
    if os.path.lexists(given):
        return [Path(given)]
    if not has_magic(given):
        raise ValueError(f"{given!r} does not exist; check the path")
    if not (found := sorted(glob(given, recursive=True))):
        raise ValueError(f"{given!r} matches no file; check the pattern")
    return [Path(path) for path in found]


def _named(path: Path) -> str:
    """A path with "/" between its parts. Bytes that are no text, which a name may hold, become escapes."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _walk(folder: Path, shown: Path, found: dict[str, Path], skipped: dict[str, str]) -> None:
    """Add the files below a folder to ``found``. ``shown``: what the folder is called in their names."""
    root = Path(os.path.realpath(folder))

    def named(path: str | Path) -> str:
        return _named(shown / Path(path).relative_to(folder))

    def unreadable(error: OSError) -> None:
        skipped[named(error.filename)] = f"unreadable: {error.strerror}"

    for at, folders, files in os.walk(folder, onerror=unreadable):
        for name in list(folders):
            path = Path(at, name)
            if path.is_symlink():
                skipped[named(path)] = "a link to a folder"
            elif name in LEFT_OUT:
                skipped[named(path)] = "a folder of version control"
            else:
                continue
            folders.remove(name)
        for name in files:
            path = Path(at, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                skipped[named(path)] = "a link that leads out of the folder"
            else:
                found.setdefault(named(path), path)
        if len(found) > MOST_FILES:
            raise ValueError(f"{folder} holds more than {MOST_FILES} files; give parts of it")


def _each_once(found: dict[str, Path], skipped: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """(name, path) in the order of the names. A file with several names has its first that is no link."""
    owners: dict[tuple[int, int], str] = {}
    for name, path in sorted(found.items(), key=lambda item: (item[1].is_symlink(), item[0])):
        try:
            check_plain(path)
            status = os.stat(path)
        except (ValueError, OSError) as error:
            skipped[name] = _reason(error, path)
            continue
        owner = owners.setdefault((status.st_dev, status.st_ino), name)
        if owner != name:
            skipped[name] = f"the same file as {owner}"
    return ((name, found[name]) for name in sorted(owners.values()))


def _looked_at(path: Path, name: str, skipped: dict[str, str]) -> CorpusFile | None:
    """The file with its kind and encoding; None, and the reason among the skipped ones, if it cannot be read."""
    ending = (path.with_suffix("") if is_packed(path) else path).suffix.lower()
    kind = KINDS.get(ending, "text")
    try:
        if kind == "parquet":
            if is_packed(path):
                raise ValueError("Parquet within gzip; unpack it")
            if find_spec("pyarrow") is None:
                raise ImportError
            return CorpusFile(path, name, kind, "", "", path.stat().st_size)
        encoding, num_bytes = find_encoding(partial(byte_chunks, path))
        if num_bytes > WHOLE_BYTES.get(kind, num_bytes):
            raise ValueError(f"too large: {kind} of {num_bytes} bytes, at most {WHOLE_BYTES[kind]}; split it")
        if not num_bytes:
            raise ValueError("empty")
    except ImportError as error:
        raise ValueError(f"{name}: {PARQUET}") from error
    except (ValueError, OSError) as error:
        skipped[name] = _reason(error, path)
        return None
    return CorpusFile(path, name, kind, encoding.name, encoding.how, num_bytes)


def _reason(error: Exception, path: Path) -> str:
    """What an error says, without the path that stands in front of it."""
    if isinstance(error, OSError):
        return f"unreadable: {error.strerror or error}"
    return str(error).removeprefix(str(path)).removeprefix(visible(str(path))).removeprefix(":").strip()
