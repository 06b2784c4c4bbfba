"""Only plain files are opened for reading, whatever a name promises.

A pipe would be waited for without end, and a device such as /dev/zero read without end. Links are followed, because the
hub's cache is made of them. This module knows nothing about the content of files.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

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
