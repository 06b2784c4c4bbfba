"""One trace and its page for all tests of a module."""

import pytest

from ppo.trace import render_trace_page
from tests.ppo.trace.small import EVIL, trace_of


@pytest.fixture(scope="module")
def trace():
    return trace_of()


@pytest.fixture(scope="module")
def page(trace):
    return render_trace_page(trace, title=f"Title {EVIL}", meta={"model": EVIL, "seed": 0})
