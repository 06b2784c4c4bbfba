"""The device of these tests: the accelerator of this machine. Where there is none they are skipped.

ACCELERATOR in the environment names another one. ``cpu`` shows whether the tests themselves work; ``pretend`` runs them
on the device that tests/accelerator pretends, which shows whether they mix devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from ppo.lm.device import accelerator, resolve_device

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product, or bits may differ


@pytest.fixture
def device() -> Iterator[torch.device]:
    asked = os.environ.get("ACCELERATOR", "auto")
    if asked == "pretend":
        from tests.accelerator.device import plugged_in

        with plugged_in() as place:
            yield place
        return
    if asked == "auto" and accelerator() is None:
        pytest.skip("there is no accelerator on this machine")
    yield resolve_device(asked)
