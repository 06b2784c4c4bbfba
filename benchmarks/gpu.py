"""All that a first real GPU has to tell, in one run of at most eight minutes.

    python -m benchmarks.gpu --json gpu.json            # the accelerator of this machine
    python -m benchmarks.gpu --device cpu --tiny        # without one: whether the program itself works

    tests      the tests that are marked gpu
    resume     runs that are resumed from a checkpoint, and repeated from the seed, bit for bit
    step       a PPO step part by part; its memory and its time beside the cost model's
    rollout    ``ppo.generate`` beside transformers' ``generate`` and its continuous batching
    compiled   the compiled rollout beside the ordinary one

Every part is a process of its own with a time limit; together the limits are below eight minutes. A part writes what it
knows after each measurement. So a part that fails, hangs or breaks the device loses only the rest of itself. The exit
status is 1 if a part failed, ran out of time or found something wrong, and the result says what.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import add_device, write_json
from eval.provenance import device_name

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 480
# What each part may take. All of them, and a few seconds for starting and stopping, make MOST_SECONDS.
LIMITS = {"tests": 110, "resume": 65, "step": 95, "rollout": 105, "compiled": 95}
_SHOWN = 1500  # characters of a failed part's last words


def main() -> int:
    options = read_options()
    facts = facts_of(options.device)
    print(
        f"{facts['name']}, torch {torch.__version__}, at most {sum(LIMITS[name] for name in options.parts)} s",
        flush=True,
    )
    started, parts = time.monotonic(), {}
    for name in options.parts:
        parts[name] = run_part(name, options)
        print(f"{name:9} {parts[name]['status']:12} {parts[name]['seconds']:6.1f} s   {line(parts[name])}", flush=True)
        result = {"options": vars(options), "facts": facts, "seconds": time.monotonic() - started, "parts": parts}
        write_json(options.json, result, options.device)  # after every part: a run that is cut off leaves a file
    return int(any(part["status"] != "ok" for part in parts.values()))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_device(parser)
    parser.add_argument(
        "--tiny", action="store_true", help="small sizes: it shows that the program works, nothing more"
    )
    parser.add_argument("--parts", default=",".join(LIMITS), help="some of " + ", ".join(LIMITS))
    parser.add_argument("--json", default=None, help="file for the result")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := [name for name in options.parts if name not in LIMITS]:
        parser.error(f"unknown parts: {', '.join(unknown)}; choose from {', '.join(LIMITS)}")
    if options.device.type == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny: the CPU is measured by the other benchmarks")
    return options


def facts_of(device: torch.device) -> dict[str, Any]:
    """What the device is: its name, and on CUDA its memory, its capability and the versions around it."""
    known: dict[str, Any] = {"device": str(device), "name": device_name(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known |= {
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return known


def run_part(name: str, options: argparse.Namespace, *, limit: float | None = None) -> dict[str, Any]:
    """Run a part in a process of its own: its status, seconds, result, problems, and last words if it failed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result"
        code, words = run_limited(command(name, options, file), environment(options), limit or LIMITS[name])
        result = read_tests(words) if name == "tests" else read_notes(file)
    problems = result.pop("problems", [])
    status = "out of time" if code is None else "failed" if code or problems else "ok"
    found = {"status": status, "seconds": time.monotonic() - started, "result": result, "problems": problems}
    return found if status == "ok" else found | {"last_words": words[-_SHOWN:]}


def command(name: str, options: argparse.Namespace, file: Path) -> list[str]:
    """The program of a part. It writes its result to ``file``."""
    if name == "tests":
        return [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "--color=no"]
    size = ["--tiny"] if options.tiny else []
    return [
        sys.executable,
        "-m",
        "benchmarks.gpu_parts",
        name,
        "--device",
        str(options.device),
        "--out",
        str(file),
        *size,
    ]


def environment(options: argparse.Namespace) -> dict[str, str]:
    """The device for the tests, what cuBLAS wants so that products repeat, and output at once, in wide lines."""
    return os.environ | {
        "ACCELERATOR": str(options.device), "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1", "COLUMNS": "400",
    }  # fmt: skip


def run_limited(arguments: list[str], variables: Mapping[str, str], limit: float) -> tuple[int | None, str]:
    """(exit status, all that it printed) of a program; None if it was ended, with its children, after ``limit`` s."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=dict(variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        words, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, words


def read_notes(file: Path) -> dict[str, Any]:
    """What a part wrote before it ended. Nothing at all is a problem."""
    if not file.is_file():
        return {"problems": ["it ended before it had measured anything"]}
    notes: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return notes


def read_tests(words: str) -> dict[str, Any]:
    """What pytest said of each test while it ran, so that a run which is ended leaves the results of the tests before.

    Its last lines say why a test failed.
    """
    ends = dict(re.findall(r"^(tests/gpu/.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", words, re.MULTILINE))
    reasons = dict(re.findall(r"^(?:FAILED|ERROR) (tests/gpu/.+?) - (.*)$", words, re.MULTILINE))
    counts = {end.lower(): list(ends.values()).count(end) for end in ("PASSED", "SKIPPED", "FAILED", "ERROR")}
    wrong = [name for name, end in ends.items() if end in ("FAILED", "ERROR")]
    problems = [f"{name.partition('::')[2]}: {reasons.get(name, 'failed')[:200]}" for name in wrong]
    return counts | {"problems": problems if counts["passed"] else [*problems, "no test passed"]}


def line(part: Mapping[str, Any]) -> str:
    """A part in one line: what is wrong with it, else its headline."""
    if part["problems"]:
        return "; ".join(part["problems"])[:300]
    if part["status"] != "ok":
        return " ".join(str(part["last_words"]).split())[-200:]
    headline: str = part["result"].get("headline", "")
    return headline or f"{part['result'].get('passed', 0)} passed, {part['result'].get('skipped', 0)} skipped"


if __name__ == "__main__":
    sys.exit(main())
