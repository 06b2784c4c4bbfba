"""The README tells the truth: its example runs, its paths exist, its options are real."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ppo

ROOT = Path(ppo.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_runs_offline():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_file_of_the_house_exists():
    (tree,) = re.findall(r"## The house\n\n```\n(.*?)```", README, flags=re.DOTALL)
    room = ""
    for line in tree.splitlines():
        if not line.startswith(" "):
            room = line.split()[0]
            assert (ROOT / room).exists(), room
            continue
        for name in re.findall(r"(?:^  |  )([a-z_]+(?:\.py|/))(?= )", line):
            assert (ROOT / room / name).exists(), f"{room}{name}"


def test_every_option_in_a_command_is_real():
    help_text = subprocess.run(
        [sys.executable, "demem.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for line in re.findall(r"^python demem.py .*$", README, flags=re.MULTILINE):
        for option in re.findall(r"--[a-z-]+", line.split("#")[0]):
            assert option in help_text or option == "--help", line


def test_nothing_was_left_to_fill_in():
    assert "@@" not in README
