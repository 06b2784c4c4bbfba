"""The golden run of the command line: a short ``demem.py run`` on the lab, its files and what it prints.

    python -m tests.golden.command_line --out FOLDER --tree TREE

This module knows the program only from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from . import digest

SHORT = ("--steps", "1", "--check-every", "1", "--num-samples", "0", "--num-own", "8", "--save-every-steps", "1")
_GLOBAL = re.compile(r"rng\.safetensors:(torch|python|numpy)")  # these are not seeded, and the job does not use them


def normal(text: str, out: Path) -> str:
    """The text without the parts that differ in a second run: its folder and its times."""
    return re.sub(r"\b\d+(\.\d+)? (s|min|h)\b", "# s", text.replace(str(out), "OUT"))


def run(tree: Path, out: Path) -> dict[str, str]:
    """The exit status, the lines of stdout, the names of all files, and the contents of the files without times."""
    command = [sys.executable, "demem.py", "run", "--out", str(out), *SHORT]
    done = subprocess.run(command, cwd=tree, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True)
    found = {"exit status": f"{done.returncode} {done.stderr[-2000:] if done.returncode else ''}"}
    found |= {f"stdout/{i}": line for i, line in enumerate(normal(done.stdout, out).splitlines())}
    files = [path for path in out.rglob("*") if path.is_file()]
    for path in files:
        name = str(path.relative_to(out))
        found[f"file/{re.sub(r'tfevents.*', 'tfevents', name)}"] = "there"
    if done.returncode == 0:
        (last,) = (out / "checkpoints").iterdir()
        found |= digest.of_checkpoint(last, "checkpoint") | digest.of_logs(out)
        for name in [name for name in found if _GLOBAL.search(name)]:
            del found[name]
        for i, line in enumerate((out / "passages.jsonl").read_text(encoding="utf-8").splitlines()):
            found[f"passages/{i}"] = line
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"demem": run(options.tree, options.out / "run")}
    (options.out / f"digests-{options.processes}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
