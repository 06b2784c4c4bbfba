"""What reaches a console: signs that it cannot write; warnings and errors that quote text from outside.

This module knows streams, warnings, logging and errors, nothing else.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .visible import visible

_LOGGERS = ("", "transformers", "huggingface_hub")  # they quote names from configs that strangers wrote


def print_any_text(*streams: Any) -> None:
    """Let a console that is not UTF-8 show what it cannot write as escapes, such as \\u2026, in place of an error.

    A run must not end because of a sign in a model's text. ``streams`` without an encoding of their own stay.
    """
    for stream in streams:
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def shown_warnings(*, told: set[str] | None = None) -> Iterator[None]:
    """Within the context, warnings and log lines of other libraries are made visible (:mod:`ppo.io.visible`).

    ``told``: the sentences that were shown before; it grows. A warning is then its sentence alone, without the place in
    the code, and each is shown once: for commands, whose users read no code. None: as Python writes warnings.
    """
    plain = warnings.formatwarning
    handlers = [handler for name in _LOGGERS for handler in logging.getLogger(name).handlers]

    def format_shown(message: Warning | str, *arguments: Any, **named: Any) -> str:
        if told is None:
            return visible(plain(message, *arguments, **named), lines=True)
        sentence = f"warning: {visible(str(message), lines=True)}\n"
        if sentence in told:
            return ""
        told.add(sentence)
        return sentence

    for handler in handlers:
        handler.addFilter(_show)
    warnings.formatwarning = format_shown
    try:
        yield
    finally:
        warnings.formatwarning = plain
        for handler in handlers:
            handler.removeFilter(_show)


@contextmanager
def shown_errors() -> Iterator[None]:
    """Within the context, or the function that it decorates, the text of a ValueError is made visible.

    A path, a name or a value in it may be a stranger's. Errors that it was raised from keep their own text.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        shown = visible(text, lines=True)
        if shown == text:
            raise
        if type(error) is not ValueError:  # such as one of UTF-8, whose text is not its argument
            raise ValueError(shown) from error
        error.args = (shown,)
        raise


def show_tracebacks() -> None:
    """From now on, the traceback of an error that nobody catches is printed as it may be shown."""

    def print_shown(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        print(visible("".join(traceback.format_exception(kind, error, at)), lines=True), end="", file=sys.stderr)

    sys.excepthook = print_shown


def _show(record: logging.LogRecord) -> bool:
    """A filter that keeps every record, with its message as it may be shown."""
    record.msg, record.args = visible(record.getMessage(), lines=True), ()
    return True
