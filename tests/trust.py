"""Break runs and files in every way that is known here, and count what was lost. Nothing may be.

    python -m tests.trust [--scale 0.1] [--json FILE]        all of it: 15 minutes on two cores

The trials can be run alone, too: kills (SIGKILL) at calls and by the clock, full disks, kills of one of two processes,
hostile and damaged files, checkpoints with one wrong field and right checksums. There is a line for each: how often it
was tried, how often something was lost, and the command that repeats it. The exit status is 1 if anything was lost. Two
trials run at a time.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.processes import ENVIRONMENT, ROOT

KILLED_CASES = {"tiny": 80, "critic": 60, "bf16": 60, "lora": 60, "one kept": 60}  # kills of each
_LAST_LINE = re.compile(r"[\w.]*(Error|Exception)\b")  # of a traceback
LONGEST_SECONDS = 3600.0  # a program that takes longer hangs


@dataclass(frozen=True)
class Finding:
    """What a trial came to. ``lost``: how often a run ended otherwise than unbroken, or a loader misbehaved."""

    trial: str
    tried: int
    lost: int
    seconds: float
    command: str
    details: list[str]


def kills(case: str, count: int) -> Finding:
    """Kills of one process, a fifth of them by the clock; each resumed run is compared bit for bit."""
    by_clock = max(1, count // 5)
    events = max(1, (count - by_clock) // 4)
    return _killed(f"kills, {case}", case, "--events", str(events), "--times", str(by_clock))


def disks(count: int) -> Finding:
    """Writes that fail as on a full disk; the error must name a file, and the resumed run ends as if unbroken."""
    return _killed("full disk", "tiny", "--events", "0", "--disks", str(count))


def pairs(count: int) -> Finding:
    """Kills of one of two processes."""
    return _killed("kills of one of two processes", "tiny", "--events", "0", "--pairs", str(count))


def files(count: int) -> Finding:
    """Hostile files of every kind; a tenth as many of the slow kinds."""
    command = ["-m", "tests.fuzz", "--inputs", str(count)]
    status, output, seconds = _run(command)
    found = [dict(re.findall(r"'(\w+)': (\d+)", line)) for line in output.splitlines() if re.search(r"in \d+ s$", line)]
    tried, lost = (
        sum(int(n) for one in found for kind, n in one.items() if wanted in (kind, "")) for wanted in ("", "failed")
    )
    told = [line for line in output.splitlines() if ", seed " in line or _LAST_LINE.match(line)]
    return Finding("hostile files", tried, lost + (status != 0 and lost == 0), seconds, _shown(command), told)


def resealed(count: int) -> Finding:
    """Checkpoints with one wrong field and right checksums: every field and value, if there are not more of them."""
    command = ["-m", "tests.resealed", "--inputs", str(count)]
    status, output, seconds = _run(command)
    if not output.startswith('{"of"'):
        return Finding("re-sealed checkpoints", 0, 1, seconds, _shown(command), [output[-500:]])
    found = json.loads(output.splitlines()[-1])
    lost = found.get("lost", 0)
    return Finding(
        "re-sealed checkpoints", found["tried"], lost + (status != 0 and not lost), seconds, _shown(command),
        found["trials"][:5],
    )  # fmt: skip


def _killed(name: str, case: str, *options: str) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "tests.killed", folder, case, *options]
        status, output, seconds = _run(command)
    shown = _shown(["-m", "tests.killed", "FOLDER", case, *options])
    if status != 0:
        return Finding(name, 0, 1, seconds, shown, [output[-500:]])
    trials = [one for one in json.loads(output.splitlines()[-1])["trials"] if _is_hit(one)]
    lost = [one for one in trials if one["differs"] or one["resumed"] not in (0, [0, 0])]
    return Finding(name, len(trials), len(lost), seconds, shown, [json.dumps(one) for one in lost[:5]])


def _is_hit(trial: dict[str, Any]) -> bool:
    """Whether the kill met a run, and did not come after its end. A full disk is met at a call, thus always."""
    status = trial["status"]
    return "disk" in trial or -signal.SIGKILL in (status if isinstance(status, list) else [status])


def _run(command: list[str]) -> tuple[int, str, float]:
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
            timeout=LONGEST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"it hung for {LONGEST_SECONDS:.0f} s", LONGEST_SECONDS
    return done.returncode, done.stdout or done.stderr, time.perf_counter() - started


def _shown(command: list[str]) -> str:
    return "python " + " ".join(f"'{part}'" if " " in part else part for part in command)


def plan(scale: float) -> list[Callable[[], Finding]]:
    """The trials, the longest first. ``scale`` 1 is what the page of numbers tells."""

    def times(count: int) -> int:
        return max(1, round(count * scale))

    killed = [partial(kills, case, times(count)) for case, count in KILLED_CASES.items()]
    others = [partial(disks, times(60)), partial(resealed, times(2400))]
    return [partial(files, times(5600)), partial(pairs, times(60)), *killed, *others]


def line(one: Finding) -> str:
    """A finding as a line of the table."""
    return f"{one.trial:32} {one.tried:7} tried {one.lost:4} lost {one.seconds:6.0f} s   {one.command}"


def main(arguments: list[str] | None = None) -> int:
    """Run the trials and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="so many times as many trials")
    parser.add_argument("--json", type=Path, help="write what was found to this file as well")
    options = parser.parse_args(arguments)
    findings: list[Finding] = []

    def told(trial: Callable[[], Finding]) -> None:
        findings.append(trial())
        print(line(findings[-1]), *findings[-1].details, sep="\n  ", flush=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(told, plan(options.scale)))
    print(f"{'all':32} {sum(one.tried for one in findings):7} tried {sum(one.lost for one in findings):4} lost")
    if options.json is not None:
        found: list[dict[str, Any]] = [asdict(one) for one in findings]
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(one.lost for one in findings))


if __name__ == "__main__":
    sys.exit(main())
