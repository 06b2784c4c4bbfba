"""Ctrl-C and SIGTERM are held back until the step is over."""

import os
import signal
import threading

import pytest

from ppo.distributed import Processes
from ppo.run.interrupt import deferred_interrupts, ignore_sigterm, sigterm_as_ctrl_c


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with deferred_interrupts() as interrupt:
        assert not interrupt
        os.kill(os.getpid(), number)
        assert interrupt
        assert interrupt.number == number
        assert signal.getsignal(number) is before  # a second signal acts as before
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_interrupts():
    def twice():
        with deferred_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


@pytest.mark.parametrize("context", [deferred_interrupts, sigterm_as_ctrl_c])
@pytest.mark.parametrize("count", [1, 2])
def test_with_several_processes_one_that_fails_ignores_sigterm_until_it_has_printed_its_error(count, context):
    def fails():
        with context(), Processes(0, count).last_words():
            raise OSError("the disk is full")

    before, ctrl_c = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(OSError, match="the disk is full"):
            fails()
        assert signal.getsignal(signal.SIGTERM) is (before if count == 1 else signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is ctrl_c
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_ctrl_c_sigterm_still_acts():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Processes(0, 2).last_words():
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_nothing_happens():
    seen = []

    def work():
        ignore_sigterm()
        with deferred_interrupts() as interrupt:
            seen.append(bool(interrupt))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
