"""Marks for tests of what only newer versions of a dependency have, or do right."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version

TORCH, TRANSFORMERS = (Version(Version(module.__version__).base_version) for module in (torch, transformers))


def since_torch(version: str, why: str) -> pytest.MarkDecorator:
    """The test is skipped for an older torch; ``why`` is about that one."""
    return pytest.mark.skipif(Version(version) > TORCH, reason=f"torch before {version} {why}")


def since_transformers(version: str, why: str) -> pytest.MarkDecorator:
    """The test is skipped for an older transformers; ``why`` is about that one."""
    return pytest.mark.skipif(Version(version) > TRANSFORMERS, reason=f"transformers before {version} {why}")
