"""Signals are held back until the step is over."""

import os
import signal
import threading

import pytest

from ppo.interrupt import deferred_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with deferred_interrupts() as interrupt:
        assert not interrupt
        os.kill(os.getpid(), number)
        assert interrupt
        assert interrupt.number == number
        assert signal.getsignal(number) is before  # a second one acts
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_interrupts():
    def twice():
        with deferred_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_outside_the_main_thread_nothing_happens():
    seen = []

    def work():
        with deferred_interrupts() as interrupt:
            seen.append(bool(interrupt))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
