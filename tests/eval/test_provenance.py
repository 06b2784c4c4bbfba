"""Provenance: where a number comes from, without the folder names of the machine."""

import sys
from pathlib import Path

import pytest

from eval import provenance

ROOT = Path(provenance.__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([str(ROOT / "demem.py"), "run", "--steps", "2"], "python demem.py run --steps 2"),
        ([str(ROOT / "benchmarks" / "study.py"), "--list"], "python -m benchmarks.study --list"),
        (["demem.py", "run", "--out", str(ROOT / "runs" / "a")], "python demem.py run --out runs/a"),
        (["demem.py", "run", "--data", "/elsewhere/a.csv"], "python demem.py run --data /elsewhere/a.csv"),
        (["demem.py", "run", "--secrets", "re:4711-\nB", "--seed", "1"], "python demem.py run --secrets re:… --seed 1"),
        (
            ["demem.py", "run", "--secrets=re:4711", "--data", "re.csv"],
            "python demem.py run --secrets=re:… --data re.csv",
        ),
        (["demem.py", "run", "--secrets", "pii"], "python demem.py run --secrets pii"),
    ],
)
def test_a_command_is_shown_from_the_projects_folder(monkeypatch, argv, shown):
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance.command() == shown


def test_everything_that_decides_a_number_is_named():
    known = provenance.provenance()
    assert set(known) >= {"command", "commit", "python", "torch", "transformers", "processor", "threads", "device"}
    assert all(known.values())
