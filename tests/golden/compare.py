"""Compare this source tree with an old commit, bit for bit, on the golden configurations.

    python -m tests.golden.compare --old 503a727 [--cache FOLDER] [--with-demem] [NAME …]

The same program, :mod:`tests.golden.run` of this tree, runs both trees. They train, and they resume the checkpoints
that the old tree wrote. Every difference is printed with its configuration and name, and makes the exit status 1. Both
run on one thread, on this machine, so that only the code differs. ``--cache`` keeps the results of the old tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
import transformers

from .configurations import CASES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROGRAM = ("__init__.py", "configurations.py", "digest.py", "run.py", "tiny.py", "command_line.py")
Digests = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Side:
    """A source tree, and the folder for its results. ``program``: a folder that holds the package ``golden``."""

    tree: Path
    out: Path
    program: Path

    def run(self, kind: str, module: str, *arguments: str, processes: int = 1) -> Digests:
        """The digests that a module of ``golden`` writes into the folder ``kind``, with this tree's ``ppo``.

        Raises RuntimeError with the end of its output if it fails.
        """
        folder = self.out / kind
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", f"golden.{module}"]
        command += ["--tree", str(self.tree), "--out", str(folder), "--processes", str(processes), *arguments]
        paths = {"PYTHONPATH": f"{self.tree}{os.pathsep}{self.program}", "HF_HUB_OFFLINE": "1"}
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            command, cwd=self.tree, env=os.environ | paths | threads, capture_output=True, text=True, timeout=1800
        )
        if done.returncode:
            raise RuntimeError(f"{self.tree}: golden.{module} ended with {done.returncode}\n{done.stderr[-6000:]}")
        digests: Digests = json.loads((folder / f"digests-{processes}.json").read_text())
        return digests

    def train(self, names: Sequence[str]) -> Digests:
        """Train every configuration, with the number of processes that it asks for."""
        return self._all("train", names)

    def resume(self, checkpoints: Path, names: Sequence[str]) -> Digests:
        """Make one step from each checkpoint in the folder that another side's ``train`` wrote."""
        return self._all("resume", names, "--resume-from", str(checkpoints))

    def _all(self, kind: str, names: Sequence[str], *arguments: str) -> Digests:
        shutil.rmtree(self.out / kind, ignore_errors=True)
        counts = sorted({CASES[name].processes for name in names})
        found = [self.run(kind, "run", *arguments, *names, processes=count) for count in counts]
        return {f"{kind} {name}": digests for part in found for name, digests in part.items()}

    def command_line(self) -> Digests:
        """Run the main job as a user starts it."""
        shutil.rmtree(self.out / "demem", ignore_errors=True)
        return self.run("demem", "command_line")


def copy_program(folder: Path) -> Path:
    """Copy this package into the folder as ``golden``. Under that name no tree's own ``tests`` can take its place."""
    (folder / "golden").mkdir(parents=True)
    for name in PROGRAM:
        shutil.copy(HERE / name, folder / "golden")
    return folder


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The differences of one configuration, and what only the new tree has in state.json, metrics or a trace.

    Those are no fault: a new tree may say more.
    """
    may_be_new = ("/state.json/", "metrics/", "trace/")
    added = [name for name in new if name not in old and any(part in name for part in may_be_new)]
    wrong = []
    for name in [*old, *(name for name in new if name not in old and name not in added)]:
        before, after = old.get(name, "(not there)"), new.get(name, "(not there)")
        if before != after:
            wrong.append(f"{name}\n    old {before:.200}\n    new {after:.200}")
        elif name == "error" or (name == "resumed/differs in" and before != "[]"):
            wrong.append(f"{name}: both trees say {before:.500}")
    return wrong, added


def report(old: Digests, new: Digests, *, most: int) -> int:
    """Print the differences and return their number. A configuration that one side lacks is a difference."""
    if not old:
        print("nothing was compared")
        return 1
    total, compared, failing = 0, 0, []
    for case in sorted(old.keys() | new.keys()):
        wrong, added = differences(old.get(case, {}), new.get(case, {}))
        compared += len(old.get(case, {}))
        total += len(wrong)
        for text in wrong[: most or None]:
            print(f"{case}: {text}")
        if len(wrong) > most > 0:
            print(f"{case}: … and {len(wrong) - most} more")
        if added:
            print(f"{case}: only in what the new tree says, which is allowed: {', '.join(added)}")
        failing += [f"{case} ({len(wrong)})"] if wrong else []
    trained, resumed = (sum(case.startswith(kind) for case in old) for kind in ("train ", "resume "))
    commands = f", {len(old) - trained - resumed} commands run" if len(old) > trained + resumed else ""
    verdict = f"{total} differ, in {', '.join(failing)}" if failing else "all are the same"
    done = f"{trained} configurations trained, {resumed} old checkpoints resumed{commands}"
    print(f"{done}, {compared} digests compared: {verdict}")
    return total


def extract(commit: str, folder: Path) -> None:
    """Write the tree of a commit. Raises CalledProcessError if this repository does not have the commit."""
    done = subprocess.run(["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def commit_of(name: str) -> str | None:
    """The full name of a commit of this repository, or None."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def key(commit: str) -> str:
    """A key of everything that the digests of the old tree depend on."""
    sources = b"".join((HERE / name).read_bytes() for name in PROGRAM)
    versions = f"{commit} {torch.__version__} {transformers.__version__}"
    return f"{commit[:12]}-{hashlib.sha256(sources + versions.encode()).hexdigest()[:12]}"


def ask_old(side: Side, commit: str, names: Sequence[str], *, with_demem: bool) -> Digests:
    """The digests of the old tree. Those that its folder already has are read."""
    if not side.tree.is_dir():
        part = side.tree.with_name("tree.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        extract(commit, part)
        part.rename(side.tree)
    found = known(side.out / "known.json", lambda: side.train(names) | side.resume(side.out / "train", names))
    return found | (known(side.out / "known-demem.json", side.command_line) if with_demem else {})


def known(file: Path, ask: Callable[[], Digests]) -> Digests:
    """The contents of a file. Without the file, the answer is computed and written to it."""
    if not file.is_file():
        file.write_text(json.dumps(ask()))
    found: Digests = json.loads(file.read_text())
    return found


def ask_new(side: Side, old: Side, asked: Future[Digests], names: Sequence[str], *, with_demem: bool) -> Digests:
    """The digests of the new tree. It waits for the old tree's checkpoints."""
    found = side.train(names)
    found |= side.command_line() if with_demem else {}
    asked.result()
    return found | side.resume(old.out / "train", names)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", default="503a727", help="commit to compare with")
    parser.add_argument("--new", type=Path, default=ROOT, help="source tree to compare; by default this one")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the old tree gave")
    parser.add_argument("--with-demem", action="store_true", help="a short demem.py run, too")
    parser.add_argument("--most", type=int, default=0, help="differences to print of each configuration; 0: all")
    parser.add_argument("names", nargs="*", help="configurations; by default all")
    options = parser.parse_args(arguments)
    commit, names = commit_of(options.old), options.names or list(CASES)
    if commit is None:
        parser.error(f"this repository has no commit {options.old}")
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor() as pool:
        place = Path(temporary)
        program = copy_program(place / "program")
        kept = (options.cache.resolve() if options.cache else place / "old") / key(commit)
        old = Side(kept / "tree", kept, program)
        new = Side(options.new.resolve(), place / "new", program)
        wanted = list(CASES) if options.cache else names  # the cache holds every configuration
        asked = pool.submit(ask_old, old, commit, wanted, with_demem=options.with_demem)
        found = ask_new(new, old, asked, names, with_demem=options.with_demem)
        before = {case: digests for case, digests in asked.result().items() if case.split()[-1] in {*names, "demem"}}
        return 1 if report(before, found, most=options.most) else 0


if __name__ == "__main__":
    sys.exit(main())
