"""Ctrl-C and SIGTERM: the current step is finished first, so that no checkpoint holds half a step.

This module knows signals, nothing about training.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupt:
    """True once a signal asked the run to end. ``number``: the signal's number, or None."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def deferred_interrupts() -> Iterator[Interrupt]:
    """Within the context the first SIGINT or SIGTERM is only noted. A second one acts as it did before the context.

    A handler that was set inside the context, for example by :func:`ignore_sigterm`, stays at the end. Python handles
    signals only in the main thread. In other threads the context does nothing.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    handlers: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.number = number
        restore()

    def restore() -> None:
        for number, handler in handlers.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, note)
    try:
        yield interrupt
    finally:
        restore()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Within the context SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that one handler can serve both.

    A handler that was set inside the context stays at the end. Python handles signals only in the main thread. In other
    threads the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, before)


def ignore_sigterm() -> None:
    """From here on SIGTERM does nothing. Use this in a process that is ending and still has to print why.

    Python sets handlers only in the main thread. In other threads this does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
