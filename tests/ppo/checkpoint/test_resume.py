"""A run that is killed at any moment and resumed ends with the bits and the files of the run that was never killed.

tests/killed.py forks the runs and kills them. tests/killed_two.py kills one of two processes under torchrun.
tests/ppo/distributed/test_processes.py resumes a checkpoint of two processes in one, within rounding.
"""

import json
import subprocess
import sys
import time

import pytest

from tests.killed import fingerprint
from tests.processes import ENVIRONMENT, ROOT, torchrun


def killed(folder, case, *options):
    """The report of tests/killed.py. Every run in it was killed, resumed, and equal to the unbroken one."""
    command = [sys.executable, "-m", "tests.killed", str(folder), case, *options]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=1400)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    for trial in report["trials"]:
        assert trial["resumed"] == 0, (trial, done.stderr[-4000:])
        assert not trial["differs"], trial
        assert trial["status"] == -9, trial
    return report


def test_a_kill_in_every_phase(tmp_path):
    report = killed(tmp_path, "tiny", "--steps", "3", "--events", "1", "--seed", "5")
    assert [trial["kill"][0] for trial in report["trials"]] == ["rollout", "reward", "update", "write"]


@pytest.mark.slow
def test_kills_by_the_clock_and_in_every_phase_on_the_lab_model(tmp_path):
    report = killed(tmp_path, "lab", "--steps", "4", "--events", "3", "--times", "36")
    assert (
        sum(bool(trial["checkpoints"]) for trial in report["trials"]) >= 30
    )  # the other runs start again from the beginning


@pytest.mark.slow
def test_a_kill_at_every_call_of_a_checkpoint_write(tmp_path):
    """The kills hit the second checkpoint, which replaces the first: its files, its renames, the old one's deletion."""
    report = killed(tmp_path, "one kept", "--steps", "3", "--events", "0", "--every-write")
    names, trials = report["second_save"], report["trials"]
    assert {"save_file", "sha256", "flush", "link", "replace", "rmtree", "unlink", "rmdir"} <= set(names)
    assert len(trials) == len(names) > 60
    assert any(trial["leftovers"] for trial in trials)
    found = [tuple(trial["checkpoints"]) for trial in trials]  # before, between and after rename and deletion
    assert set(found) == {("step-000001",), ("step-000001", "step-000002"), ("step-000002",)}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["critic", "bf16", "lora"])
def test_other_kinds_of_runs(tmp_path, case):
    killed(tmp_path, case, "--steps", "4", "--events", "2", "--times", "3")


KILLS = [(1, "update", 9), (0, "update", 21), (1, "reward", 3), (0, "write", 60)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    done = torchrun("-m", "tests.killed_two", str(folder), "3")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
def test_one_of_two_processes_dies(tmp_path, unbroken, kill):
    """All processes end in bounded time, one says why, and the run is resumed in two processes to the same bits."""
    started = time.perf_counter()
    done = torchrun("-m", "tests.killed_two", str(tmp_path / "run"), "3", *map(str, kill), timeout=240)
    assert time.perf_counter() - started < 120
    assert done.returncode != 0
    assert "LostProcessError: another process was lost in the middle of a step" in done.stderr
    assert "the last checkpoint is intact: resume it" in done.stderr
    done = torchrun("-m", "tests.killed_two", str(tmp_path / "run"), "3")
    assert done.returncode == 0, done.stderr[-4000:]
    expected, found = fingerprint(unbroken), fingerprint(tmp_path / "run")
    assert [name for name in expected if found[name] != expected[name]] == []
