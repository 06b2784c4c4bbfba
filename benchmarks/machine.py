"""What benchmarks share: the peak memory of the process, and a JSON result with where it came from."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.provenance import provenance


def peak_memory_bytes() -> int:
    """The most memory that this process ever held (its own maximum resident set)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Keep a result with where it came from; nothing without a path."""
    if path is not None:
        Path(path).write_text(json.dumps({**result, "machine": provenance()}, indent=2) + "\n", encoding="utf-8")
