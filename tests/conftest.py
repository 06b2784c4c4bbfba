"""What holds for all tests."""

import signal

import pytest

from tests.browser import MISSING, Browser, find_browser


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works():
    """A shell that starts the tests in the background lets them ignore SIGINT, and so would every child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def browser():
    """One headless browser for all tests of pages; without one they are skipped."""
    if find_browser() is None:
        pytest.skip(MISSING)
    with Browser() as started:
        yield started
