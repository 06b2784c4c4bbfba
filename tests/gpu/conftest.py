"""The device of these tests: the accelerator of this machine. Where there is none they are skipped.

With ACCELERATOR=cpu in the environment they run on the CPU. That shows whether the tests themselves work.
"""

from __future__ import annotations

import os

import pytest
import torch

from ppo.lm.device import accelerator, resolve_device


@pytest.fixture(scope="session")
def device() -> torch.device:
    asked = os.environ.get("ACCELERATOR", "auto")
    if asked == "auto" and accelerator() is None:
        pytest.skip("there is no accelerator on this machine")
    return resolve_device(asked)
