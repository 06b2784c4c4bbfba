"""The pretend device is plugged in during each test of this folder, and only then."""

import pytest


@pytest.fixture(autouse=True)
def _plugged_in():
    from tests.accelerator.device import plugged_in  # skips where torch has no place for such a device

    with plugged_in():
        yield
