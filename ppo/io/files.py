"""Small JSON and text files. They are written whole or not at all, and read with a bound on their size.

A write survives a power cut as well as a kill: the file is flushed to disk before it gets its name, and then the folder
that holds the name is flushed. This module knows nothing about the content of the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .plain_files import new_text, open_plain
from .surrogates import refuse_written_surrogates, without_surrogates
from .visible import visible

MAX_JSON_BYTES = (
    32 * 2**20
)  # Python may need 25 times as much; state.json names every frozen parameter and is far smaller


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file. Raises ValueError that names a file that is missing, too large, or no JSON in UTF-8.

    Only a plain file is opened (:mod:`ppo.io.plain_files`).

    Three things that JSON allows are refused too: an integer of thousands of digits, very deeply nested lists, and half
    a character (:mod:`ppo.io.surrogates`).
    """
    name = visible(str(path))
    try:
        with open_plain(path) as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is missing") from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise ValueError(f"{name} is damaged: it is longer than {max_bytes} bytes")
    try:
        text = content.decode("utf-8")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number that is too long
        raise ValueError(f"{name} is damaged: {str(error)[:200]}") from error
    refuse_written_surrogates(values, text, name)
    return values


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the context a ValueError that does not name the path gets it put in front."""
    try:
        yield
    except ValueError as error:
        name = visible(str(path))
        if str(path) in str(error) or name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Within the context an error of the disk that names no file gets this one's name: writes know a number alone."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old file or the new one, never a part of it."""
    replace_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, flush it to disk, and rename it. An error leaves the old file.

    Half a character, which UTF-8 cannot hold, is written as U+FFFD: a file must not fail when the work is done.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming_file(path):
            with new_text(temporary) as file:
                file.write(without_surrogates(text))
            flush(temporary)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    with naming_file(path):
        os.replace(temporary, path)
        flush(path.parent)


def flush(path: Path) -> None:
    """Make the system write a file or a folder to disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming_file(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
