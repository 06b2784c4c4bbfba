"""What holds for all tests."""

import os
import signal

import pytest
import torch

from tests.browser import MISSING, Browser, find_browser


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works():
    """A shell that starts the tests in the background lets them ignore SIGINT, and so would every child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _tests_are_about_the_cpu(request, monkeypatch):
    """Also on a machine with an accelerator, unless a test is there to show one."""
    if torch.accelerator.is_available() and not {"gpu", "accelerator"} & set(request.path.parts):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def pytest_terminal_summary(terminalreporter):
    """Where every optional package should be there (REQUIRE_EXTRAS=1, as in CI), a skip for a missing one is named."""
    for reason in _missing(terminalreporter.config):
        terminalreporter.write_line(f"a test was skipped for something that should be installed: {reason}", red=True)


def pytest_sessionfinish(session):
    if _missing(session.config) and session.exitstatus == 0:
        session.exitstatus = 1


def _missing(config) -> list[str]:
    """Why tests were skipped that need a package or a browser; none unless REQUIRE_EXTRAS is set."""
    if not os.environ.get("REQUIRE_EXTRAS"):
        return []
    skipped = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    reasons = [str(report.longrepr[2]) for report in skipped]
    return [
        reason
        for reason in reasons
        if any(word in reason for word in ("could not import", "install", "needs the extra"))
    ]


@pytest.fixture(scope="session")
def browser():
    """One headless browser for all tests of pages; without one they are skipped."""
    if find_browser() is None:
        pytest.skip(MISSING)
    with Browser() as started:
        yield started
