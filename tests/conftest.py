"""What holds for all tests."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works():
    """A shell that starts the tests in the background lets them ignore SIGINT, and so would every child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
