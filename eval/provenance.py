"""Where a number comes from: command, commit, versions, hardware. Every reported figure carries this."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Command, commit ("-dirty" if files differ from it), versions, processor, cores, threads and device."""
    device = torch.device(device)
    return {
        "command": command(),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def command() -> str:
    """How this program was called, from the project's folder; modules are shown as ``python -m``."""
    program = Path(sys.argv[0])
    root = Path(__file__).resolve().parent.parent
    if program.is_absolute() and program.is_relative_to(root):
        program = program.relative_to(root)
    is_module = len(program.parts) > 1
    name = "-m " + ".".join(program.with_suffix("").parts) if is_module else str(program)
    return " ".join(["python", name, *sys.argv[1:]])


def commit() -> str:
    """The project's short commit hash, "unknown" outside a checkout."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    return found.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's own name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
