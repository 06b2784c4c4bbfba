"""One folder, one writer: a lock that the operating system takes away when its process ends, however that ends.

The lock is on the file ``.lock`` of the folder, which names the holder: process and host. It keeps other processes out.
One process may take it several times, for instance for a command and for the training in it. A file that a killed
process left behind is not a lock.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_MOST_BYTES = 200  # of the holder's name that are read and told
_held: dict[str, tuple[int, int]] = {}  # folder -> (descriptor of its lock file, how often it was taken)
_guard = threading.Lock()


@contextmanager
def only_writer(folder: Path | None) -> Iterator[None]:
    """Within the context no other process writes to the folder; None: nothing is locked.

    A missing folder is made, and goes again if nothing was written to it. Raises ValueError, naming the holder, if
    another process is the writer, and for what cannot be written. Where the system has no such locks (Windows, some
    network drives), a RuntimeWarning says so and nothing is locked.
    """
    if folder is None:
        yield
        return
    is_made, name = not folder.exists(), os.path.realpath(folder)
    if not is_made and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}; name another folder") from error
    with _guard:
        descriptor, count = _held.get(name, (-1, 0))
        if count == 0:
            descriptor = _lock(folder)
        _held[name] = descriptor, count + 1
    try:
        yield
    finally:
        with _guard:
            descriptor, count = _held.pop(name)
            if count > 1:
                _held[name] = descriptor, count - 1
            elif descriptor >= 0:
                (folder / LOCK_FILE).unlink(missing_ok=True)  # before the lock goes: nobody else can hold it yet
                os.close(descriptor)
            if count == 1 and is_made:
                with suppress(OSError):  # it is not empty, as a rule
                    folder.rmdir()


def _lock(folder: Path) -> int:
    """Lock the folder's file; returns its descriptor, or -1 where there are no locks."""
    if fcntl is None:
        warnings.warn(f"{folder} is not locked: this system has no such locks", RuntimeWarning, stacklevel=4)
        return -1
    path = folder / LOCK_FILE
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}; name another folder") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ValueError(f"{path} is no file that a run left there: delete it, or name another folder")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, _MOST_BYTES).decode("ascii", "replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                told = f" ({holder})" if holder.isprintable() and holder else ""
                raise ValueError(
                    f"{folder} is in use by another process{told}: wait until it ends, or name another folder"
                ) from error
            text = f"{folder} is not locked: {error.strerror}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
            return -1
        if _is_still(path, descriptor):
            try:
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode("ascii", "replace"))
            except OSError as error:  # a full disk: who cannot write a line cannot write a run
                os.close(descriptor)
                raise ValueError(f"{path} cannot be written: {error.strerror}; name another folder") from error
            return descriptor
        os.close(descriptor)  # its holder deleted it between the opening and the lock: take the new one


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still names the file that was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
