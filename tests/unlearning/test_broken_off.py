"""A training that was broken off goes on: after Ctrl-C, after the loss of a process, after a kill."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import demem
from models.load import load
from ppo.log import read_jsonl
from ppo.run.lock import LOCK_FILE
from tests.ppo.run.test_lock import held
from tests.processes import ENVIRONMENT, LAUNCHER, running, wait_for
from tests.unlearning.test_demem import write_rows

ROOT = Path(demem.__file__).parent


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@pytest.mark.slow
def test_ctrl_c_and_resume_give_the_bits_of_an_unbroken_run(tmp_path):
    from safetensors.torch import load_file

    options = ["--steps", "3", "--num-samples", "0", "--check-every", "3", "--num-own", "8"]
    command = [sys.executable, "demem.py", "train", *options, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True, env=ENVIRONMENT)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    with running([*command, str(tmp_path / "broken")]) as broken:
        wait_for(metrics.exists, broken)
        broken.send_signal(signal.SIGINT)
        _, errors = broken.communicate(timeout=300)
    assert broken.returncode == 130
    assert "--resume --out" in errors
    assert "Traceback" not in errors
    subprocess.run(
        [*command, str(tmp_path / "broken"), "--resume"], cwd=ROOT, check=True, capture_output=True, env=ENVIRONMENT
    )
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert all((whole[name] == resumed[name]).all() for name in whole)
    assert len(metrics.read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_process_that_is_killed_takes_the_other_along_and_the_run_goes_on(tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 8)
    groups = [
        "--num-forget",
        "4",
        "--num-holdout",
        "2",
        "--num-never",
        "2",
        "--num-own",
        "8",
        "--retain-sequences",
        "2",
    ]
    sizes = ["--prompts-per-step", "4", "--minibatch", "4", "--save-every-steps", "1", "--target-exact", "0"]
    command = ["train", "--data", data, *groups, *sizes, "--check-every", "99", "--num-samples", "0"]
    out = ["--out", str(tmp_path / "run")]
    with running([*LAUNCHER, "2", "demem.py", *command, "--steps", "500", *out]) as launched:
        wait_for(lambda: list((tmp_path / "run").glob("checkpoints/step-*2")), launched)
        children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
        (of_rank_1,) = [p for p in children if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes()]
        os.kill(int(of_rank_1), signal.SIGKILL)
        _, errors = launched.communicate(timeout=60)
    assert launched.returncode != 0
    assert errors.count("demem: ") == 1
    assert "demem: another process was lost" in errors or "demem: interrupted; go on with" in errors
    steps = str(len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) + 1)
    assert demem.main(["train", "--resume", "--steps", steps, *out]) == 0  # in one process


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_without_torchrun_a_lost_process_is_one_line(tmp_path, lost):
    """Process 0 keeps what the processes agree on, so the other one cannot ask it any more."""
    data, port = write_rows(tmp_path / "rows.jsonl", 8), str(free_port())
    groups = ["--num-forget", "4", "--num-holdout", "2", "--num-never", "2", "--num-own", "0", "--num-samples", "0"]
    sizes = ["--prompts-per-step", "4", "--minibatch", "4", "--retain-sequences", "2", "--retain-tokens", "24"]
    rest = ["--steps", "500", "--save-every-steps", "1", "--target-exact", "0", "--check-every", "99"]
    command = [sys.executable, "demem.py", "train", "--data", data, *groups, *sizes, *rest]
    command += ["--out", str(tmp_path / "run")]
    here = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | here | {"RANK": rank}, stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL)
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        wait_for(lambda: list((tmp_path / "run").glob("checkpoints/step-*2")), both[1 - lost])
        both[lost].kill()
        _, errors = both[1 - lost].communicate(timeout=60)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[1 - lost].returncode == 2
    told = [line for line in errors.splitlines() if line.startswith("demem: ")]
    assert len(told) == 1
    assert "another process was lost" in told[0]
    assert "Traceback" not in errors


def test_an_adapter_is_trained_and_merged_and_a_killed_run_goes_on_with_it(tmp_path):
    from safetensors.torch import load_file

    out = tmp_path / "run"
    options = ["--data", write_rows(tmp_path / "rows.jsonl", 8), "--num-forget", "4", "--num-holdout", "2"]
    small = ["--prompts-per-step", "4", "--minibatch", "4", "--retain-sequences", "2", "--retain-tokens", "24"]
    length = ["--num-own", "0", "--check-every", "4", "--steps", "2", "--save-every-steps", "1", "--num-samples", "0"]
    adapter = ["--lora-rank", "2", "--learning-rate", "1e-3"]
    assert demem.main(["train", *options, *small, *length, *adapter, "--out", str(out)]) == 0
    lab = load("lab").model.state_dict()
    whole = load_file(out / "model" / "model.safetensors")
    changed = {name for name, weight in whole.items() if not torch.equal(weight, lab[name])}
    assert changed == {name for name in whole if ".h." in name and name.endswith("weight") and "ln" not in name}
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoints" / "step-000002")
    assert demem.main(["train", "--resume", "--out", str(out)]) == 0
    resumed = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("command", ["run", "train", "attack", "evaluate", "memorise", "attacks", "compare"])
def test_a_second_command_in_a_folder_is_refused_and_changes_nothing(tmp_path, capsys, command):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with held(out):
        resume = ["--resume"] if command in ("run", "train", "attack", "memorise") else []
        assert demem.main([command, *resume, "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"demem: {out} is in use by another process (process ")
        assert told.count("\n") == 1
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != LOCK_FILE} == before


def test_a_folder_that_a_kill_left_without_settings_can_be_started_in(tmp_path):
    """A run is killed after it took the lock and before config.json has its name."""
    data = write_rows(tmp_path / "rows.jsonl", 8)
    out, small = tmp_path / "run", ["--num-forget", "4", "--num-holdout", "2", "--num-never", "2", "--num-samples", "0"]
    out.mkdir()
    for name in (LOCK_FILE, "config.json.tmp", ".writable"):
        (out / name).write_text("process 1 on another\n")
    assert demem.main(["attack", "--data", data, *small, "--out", str(out)]) == 0
    assert (out / "evaluation.json").is_file()
    assert not (out / LOCK_FILE).exists()


def test_the_log_of_a_training_without_a_checkpoint_does_not_go_in_silence(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    demem.forget_training(tmp_path)
    assert "holds no checkpoint: the training starts again, and its log of 2 steps goes" in capsys.readouterr().out
    assert not (tmp_path / "metrics.jsonl").exists()
    demem.forget_training(tmp_path)
    assert capsys.readouterr().out == ""
