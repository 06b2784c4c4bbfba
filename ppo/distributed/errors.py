"""What a process raises when another process of the same run has failed, vanished, or waits for it in vain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OtherProcessError(RuntimeError):
    """Raised on the processes that did not fail when another one did. Its text is the error of that process."""


class LostProcessError(RuntimeError):
    """Raised when another process died without an error message (the system may have killed it)."""


class OutOfStepError(RuntimeError):
    """Raised when this process failed in a forward that the others are still in. No process can go on."""


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn the RuntimeError that torch.distributed raises for a vanished process into a LostProcessError."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise LostProcessError(
            f"another process was lost in the middle of a step ({reason}); the last checkpoint is intact: resume it"
        ) from error


def error_text(error: Exception) -> str:
    """The type and the message of an error, and its notes, as one text."""
    return "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
