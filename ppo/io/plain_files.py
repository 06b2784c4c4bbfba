"""Only plain files are opened, whatever a name promises.

A pipe would be waited for without end, and a device such as /dev/zero read without end. For reading, links are
followed, because the hub's cache is made of them. For writing they are not: a link in a folder that somebody sent would
lead a run to write elsewhere. This module knows nothing about the content of files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from .visible import visible

MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.gguf")
"""Names of the files that a loader of models or tokenizers may open in a folder."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_plain(path: Path) -> BufferedReader:
    """A plain file, opened for reading in bytes.

    Raises ValueError for a folder, a pipe, a socket or a device, none of which is waited for; OSError where there is no
    such file, and where links go round in a circle.
    """
    _check_mode(path, os.stat(path).st_mode)  # opening a device may already move it
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_mode(path, os.fstat(file.fileno()).st_mode)  # it may have been replaced in between
    except ValueError:
        file.close()
        raise
    return file


def append_text(path: Path, *, newline: str | None = None) -> TextIO:
    """A plain file, opened to write UTF-8 at its end, and made where there is none.

    Raises ValueError for a link, a pipe, a device or a folder, none of which is followed or waited for; OSError as
    ``open`` does.
    """
    check_appendable(path)
    return os.fdopen(_opened_to_write(path, os.O_APPEND), "a", encoding="utf-8", newline=newline)


def new_text(path: Path, *, newline: str | None = None) -> TextIO:
    """A new plain file, opened to write UTF-8. What had its name, a link say, is deleted and not followed."""
    path.unlink(missing_ok=True)
    return os.fdopen(_opened_to_write(path, os.O_EXCL), "w", encoding="utf-8", newline=newline)


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Raise ValueError of one line if any of the names, which a run will write to, is a link in its folder."""
    for name in names:
        if (folder / name).is_symlink():
            raise ValueError(
                f"{visible(str(folder / name))} is a link, and nothing is written where it leads: delete it"
            )


def delete_links(folder: Path) -> None:
    """Delete the links that a folder holds in the place of a model's or a tokenizer's files.

    The libraries that write these files would write where a link leads.
    """
    for path in (path for pattern in MODEL_FILES for path in folder.glob(pattern)):
        if path.is_symlink():
            path.unlink()


def check_appendable(path: Path) -> None:
    """Raise ValueError of one line for what :func:`append_text` would not append to."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    refuse_links(path.parent, [path.name])
    _check_mode(path, mode)


def _opened_to_write(path: Path, how: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | how
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o666)


def check_plain(path: Path) -> None:
    """Raise ValueError of one line for what is no plain file, before a library opens it that would wait for it."""
    try:
        _check_mode(path, os.stat(path).st_mode)
    except FileNotFoundError as error:
        reason = "is a link to a file that does not exist" if path.is_symlink() else "is missing"
        raise ValueError(f"{visible(str(path))} {reason}") from error
    except OSError as error:
        raise ValueError(f"{visible(str(path))} cannot be read: {error.strerror}") from error


def check_plain_files(folder: Path) -> None:
    """Raise ValueError if anything in a folder with the name of a model's or a tokenizer's file is no plain file.

    Folders directly below it count too: transformers looks for chat templates there.
    """
    for pattern in MODEL_FILES:
        for path in sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")]):
            check_plain(path)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        raise ValueError(f"{visible(str(path))} is {kind}, not a plain file; give a plain file in its place")
