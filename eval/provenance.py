"""Where a number comes from: command, commit, versions, hardware. Every reported figure carries these facts."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

_PATTERN = re.compile(r"^(--secrets=re:|re:).*", re.DOTALL)


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Command, commit ("-dirty" if tracked files differ from it), versions, processor, cores, threads and device."""
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
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    """The product's name where torch knows it (CUDA, XPU), else the kind."""
    known = None if device.type == "cpu" else getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if known is None else str(known(device))


def command() -> str:
    """The command line of this program, as typed in the project's folder. Modules are shown as ``python -m``.

    A pattern that finds secrets may hold one, and a command is shown to others: it is left out.
    """
    program, *arguments = map(below_the_project, sys.argv)
    arguments = [_PATTERN.sub(r"\1…", argument) for argument in arguments]
    parts = Path(program).with_suffix("").parts
    name = "-m " + ".".join(parts) if len(parts) > 1 else program
    return " ".join(["python", name, *arguments])


def below_the_project(argument: str) -> str:
    """An absolute path inside the project's folder, made relative to it. Any other argument is returned unchanged."""
    root = Path(__file__).resolve().parent.parent
    path = Path(argument)
    return str(path.relative_to(root)) if path.is_absolute() and path.is_relative_to(root) else argument


def commit() -> str:
    """The project's short commit hash, or "unknown" outside a checkout."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    return found.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's model name on Linux, elsewhere what ``platform`` knows."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
