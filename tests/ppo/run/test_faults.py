"""A full disk, signals and global random states: what was saved stays good, and the error is clear."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import demem
from eval.results import write_json
from ppo import Trainer
from ppo.checkpoint import folder as checkpoint
from ppo.checkpoint.random_state import random_state, set_random_state
from ppo.io import files
from tests.ppo.run.small import PROMPTS, SMALL, id_mean, make, weights
from tests.processes import ENVIRONMENT, ROOT

# ---------------------------------------------------------------------- the disk


def full_after(monkeypatch, owner, name, calls):
    """Patch a function: after ``calls`` calls it raises ENOSPC (no space left)."""
    function, count = getattr(owner, name), []

    def limited(*arguments, **named):
        count.append(1)
        if len(count) > calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, limited)


def test_a_resumed_run_deletes_the_folders_that_a_kill_left(tmp_path):
    make(out=tmp_path).train(3, progress=False)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-000002", folder / "step-000001")  # as if a kill had come before its deletion
    shutil.copytree(folder / "step-000002", folder / "step-000004.tmp")
    Trainer.resume(folder / "step-000002", PROMPTS, id_mean, out=tmp_path).train(0, progress=False)
    assert len(list(folder.iterdir())) == 4  # resumed from an earlier checkpoint: the later one is kept for now
    Trainer.resume(tmp_path, PROMPTS, id_mean, out=tmp_path).train(0, progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000003"]


@pytest.mark.parametrize(("owner", "name"), [(checkpoint, "save_file"), (checkpoint, "flush"), (checkpoint, "sha256")])
@pytest.mark.parametrize("calls", [0, 2])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, owner, name, calls):
    trainer = make(out=tmp_path)
    trainer.train(1, progress=False)
    with monkeypatch.context() as patch:
        full_after(patch, owner, name, calls)
        with pytest.raises(OSError, match=r"step-000002 could not be written \(No space left on device\)") as caught:
            trainer.train(1, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]  # the half-written folder is gone
    trainer.save_numbered()  # the disk has room again
    resumed = Trainer.resume(tmp_path, PROMPTS, id_mean)
    assert resumed.step == 2
    assert torch.equal(weights(resumed), weights(trainer))


@pytest.mark.parametrize(("owner", "name"), [(os, "replace"), (checkpoint, "flush")])
def test_an_error_when_a_whole_checkpoint_gets_its_name_tells_the_path(tmp_path, monkeypatch, owner, name):
    trainer = make(out=tmp_path)
    trainer.train(1, progress=False)
    function = getattr(owner, name)

    def limited(path, *rest):
        is_last_flush = path == tmp_path / "checkpoints"  # of the folder that holds the name
        if (name == "replace" and "step-000002" in str(path)) or is_last_flush:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, limited)
        with pytest.raises(OSError, match=r"No space left on device: '.*step-000002'"):
            trainer.train(1, progress=False)
    assert Trainer.resume(tmp_path, PROMPTS, id_mean).step in (1, 2)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_tensors_that_cannot_be_written_tell_the_path(tmp_path, monkeypatch, error):
    def full(*arguments, **named):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"No space left( on device)?: '.*end\.safetensors'"):
        checkpoint.save_tensors(tmp_path / "end.safetensors", {"a": torch.zeros(2)})


class FullDisk:
    """A tokenizer whose files find no room. The package tokenizers raises a bare Exception then."""

    def __call__(self, text, **_):
        return {"input_ids": [2]}

    def decode(self, ids, **_):
        return ""

    def batch_decode(self, rows, **_):
        return ["" for _ in rows]

    def save_pretrained(self, folder):
        raise Exception("No space left on device (os error 28)")


def test_a_tokenizer_that_cannot_be_written_tells_the_path_and_leaves_nothing(tmp_path):
    trainer = make(SMALL.replace(save_every_steps=0), out=tmp_path, tokenizer=FullDisk())
    trainer.train(1, progress=False)
    with pytest.raises(OSError, match=r"step-000001 could not be written \(.*No space left on device"):
        trainer.save_numbered()
    assert not [*(tmp_path / "checkpoints").iterdir()]
    with pytest.raises(OSError, match=r"No space left on device \(os error 28\): '.*end'"):
        trainer.save_model(tmp_path / "end")


def test_a_model_whose_file_cannot_be_written_tells_the_path(tmp_path):
    (tmp_path / "end" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(OSError, match=r"'.*end'"):
        make().save_model(tmp_path / "end")


def test_logits_that_a_training_broke_are_told_with_the_step(tmp_path):
    trainer = make(out=tmp_path)
    trainer.train(1, progress=False)
    with torch.no_grad():
        trainer.model.transformer.h[0].mlp.c_fc.weight.fill_(torch.inf)
    told = r"step 1: the model's logits are NaN or infinite, .*go on from .*step-000001, with a lower learning rate"
    with pytest.raises(ValueError, match=told):
        trainer.train(1, progress=False)


FILLED = """
import resource, signal, sys
from pathlib import Path
from tests.ppo.run.small import PROMPTS, id_mean, make
from ppo import Trainer
out = Path(sys.argv[1])
trainer = make(out=out)
trainer.train(1, progress=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    trainer.train(1, progress=False)
except OSError as error:
    print("OSError:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("resumed at", Trainer.resume(out, PROMPTS, id_mean).step)
"""


def test_a_file_size_limit_of_the_system_leaves_the_checkpoint_before(tmp_path):
    """The error comes from inside safetensors, as on a disk that is really full."""
    command = [sys.executable, "-c", FILLED, str(tmp_path), "20000"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "OSError: " in done.stdout
    assert "step-000002 could not be written" in done.stdout
    assert "resumed at 1" in done.stdout
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_small_files_are_flushed_before_they_are_renamed(tmp_path, monkeypatch):
    order = []
    for owner, name in ((os, "fsync"), (os, "replace")):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, f=function, n=name: (order.append(n), f(*a))[1])
    write_json(tmp_path / "evaluation.json", {"a": 1})
    assert order == ["fsync", "replace", "fsync"]
    full_after(monkeypatch, files, "flush", 0)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "evaluation.json", {"a": 2})
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]
    monkeypatch.undo()
    full_after(monkeypatch, os, "fsync", 0)
    with pytest.raises(OSError, match=r"No space left on device: '.*evaluation\.json(\.tmp)?'"):
        write_json(tmp_path / "evaluation.json", {"a": 2})


# ---------------------------------------------------------------------- signals, random states


def test_every_global_generator_is_saved_in_a_checkpoint():
    def draw():
        return [float(torch.rand(())), random.random(), random.gauss(0, 1), float(np.random.randn())]  # noqa: NPY002

    draw()  # Python's generator and numpy's each keep a spare normal number
    state = random_state()
    first = [draw() for _ in range(3)]
    set_random_state(state)
    assert [draw() for _ in range(3)] == first
    with pytest.raises(ValueError, match="random state that cannot be taken"):
        set_random_state(state | {"numpy": state["numpy"][:7]})


@pytest.mark.parametrize(("moment", "save_every_steps"), [("rule", 0), ("rule", 1), ("save", 1)])
def test_a_signal_at_the_very_end_of_the_last_step_is_not_lost(tmp_path, monkeypatch, moment, save_every_steps):
    """Otherwise a program that evaluates after training would need a second signal."""
    trainer = make(SMALL.replace(save_every_steps=save_every_steps), out=tmp_path)

    def signalled(function, *arguments):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    if moment == "save":
        save = trainer.save_numbered
        monkeypatch.setattr(trainer, "save_numbered", lambda: signalled(save))
    rule = (lambda metrics: signalled(lambda: trainer.step == 2)) if moment == "rule" else None
    with pytest.raises(KeyboardInterrupt):
        trainer.train(2, stop_when=rule, progress=False)
    assert Trainer.resume(tmp_path, PROMPTS, id_mean).step == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demem_says_how_to_go_on_after_a_signal(tmp_path, monkeypatch, capsys, number):
    def attack(run):
        os.kill(os.getpid(), number)
        time.sleep(5)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(demem, "attack", attack)
    before = signal.getsignal(signal.SIGTERM)
    assert demem.main(["run", "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err
    assert "demem: interrupted; go on with: python demem.py run --resume --out" in said
    assert signal.getsignal(signal.SIGTERM) is before
