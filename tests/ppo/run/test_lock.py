"""One folder, one writer: other processes are kept out, and a kill takes the lock away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from ppo import Config, Trainer
from ppo.log import read_jsonl
from ppo.run import lock
from ppo.run.lock import LOCK_FILE, only_writer
from tests.fakes import tiny_gpt2

HOLD = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("lock", sys.argv[2])  # the module alone: torch takes seconds to import
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(folder):
    """Another process holds the lock of a folder."""
    command = [sys.executable, "-c", HOLD, str(folder), lock.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def holder(tmp_path):
    with held(tmp_path / "run") as process:
        yield process


def test_another_process_is_kept_out_and_told_who_holds_it(tmp_path, holder):
    told = rf"run is in use by another process \(process {holder.pid} on "
    with pytest.raises(ValueError, match=told), only_writer(tmp_path / "run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).is_file()  # the file stays, the lock does not
    with only_writer(tmp_path / "run"):
        assert f"process {os.getpid()} on" in (tmp_path / "run" / LOCK_FILE).read_text()
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_process_may_take_it_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with only_writer(tmp_path / "run"):
        for same in (tmp_path / "run", tmp_path / "link", tmp_path / "run" / ".." / "run"):
            with only_writer(same):
                pass
            assert (tmp_path / "run" / LOCK_FILE).is_file()
    assert not (tmp_path / "run").exists()  # it was made for nothing
    assert not lock._held


def test_an_error_gives_it_back(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path):
        raise KeyError
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "fifo", "folder"])
def test_what_stands_in_its_place_is_refused(tmp_path, kind):
    place = tmp_path / "run" if kind == "file" else tmp_path / LOCK_FILE
    {"file": lambda p: p.write_text("x"), "fifo": os.mkfifo, "folder": os.mkdir}[kind](place)
    started = time.monotonic()
    message = {
        "file": r"run is a file: name a folder",
        "fifo": r"is no file that a run left",
        "folder": r"cannot be written: .*; name another folder",
    }[kind]
    with pytest.raises(ValueError, match=message), only_writer(place if kind == "file" else tmp_path):
        pass
    assert time.monotonic() - started < 5  # nobody waits for the other end of a pipe
    assert not lock._held


def test_where_the_system_has_no_locks_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(RuntimeWarning, match="is not locked: this system has no such locks"), only_writer(tmp_path):
        pass


def lengths(samples):
    return [float(len(sample.ids)) for sample in samples]


def test_a_training_is_the_only_writer_of_its_folder(tmp_path, holder):
    config = Config(prompts_per_step=2, minibatch=2, response_length=3)
    trainer = Trainer(tiny_gpt2(), [[2, 3], [4]], lengths, config, out=tmp_path / "run")
    with pytest.raises(ValueError, match="is in use by another process"):
        trainer.train(1, progress=False)
    assert trainer.step == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK_FILE}
    holder.kill()
    holder.wait()
    trainer.train(1, progress=False)
    assert [record["step"] for record in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [0]
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_full_disk_is_told_with_the_path_and_the_lock_goes_again(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ValueError, match=r"run/\.lock cannot be written: No space"), only_writer(tmp_path / "run"):
            pass
    with only_writer(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).read_text().startswith("process ")
