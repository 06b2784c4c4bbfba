"""benchmarks.gpu: limits hold, nothing that was measured is lost, and every part runs on the CPU in small."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import pytest
import torch

from benchmarks import bits, gpu, gpu_parts
from benchmarks.cost.device import measured
from benchmarks.machine import CPU, PeakMemory, peak_memory_bytes, start_memory_bytes
from tests.processes import ENVIRONMENT

OPTIONS = argparse.Namespace(device=CPU, tiny=True)
SLEEPER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_all_parts_together_stay_below_eight_minutes():
    assert sum(gpu.LIMITS.values()) <= gpu.MOST_SECONDS - 10
    assert gpu.MOST_SECONDS == 480
    assert list(gpu.LIMITS) == ["tests", *gpu_parts.PARTS]


def test_a_part_that_hangs_is_ended_with_its_children():
    code, words = gpu.run_limited([sys.executable, "-c", SLEEPER], ENVIRONMENT, 3)
    assert code is None
    child = int(words)
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.1)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def program(monkeypatch):
    """``program(text)``: every part is this program. ``FILE`` is where its result belongs."""

    def set_to(text: str) -> None:
        monkeypatch.setattr(
            gpu, "command", lambda name, options, file: [sys.executable, "-c", f"FILE = {str(file)!r}\n{text}"]
        )

    return set_to


def test_what_was_measured_before_a_crash_is_kept(program):
    program("open(FILE, 'w').write('{\"problems\": [], \"batch 8\": 3}'); import os; print('boom'); os.abort()")
    found = gpu.run_part("compiled", OPTIONS)
    assert (found["status"], found["result"]) == ("failed", {"batch 8": 3})
    assert "boom" in found["last_words"]


def test_what_was_measured_before_the_time_was_over_is_kept(program):
    program("open(FILE, 'w').write('{\"problems\": [], \"batch 8\": 3}'); import time; time.sleep(600)")
    found = gpu.run_part("compiled", OPTIONS, limit=3)
    assert (found["status"], found["result"]) == ("out of time", {"batch 8": 3})


@pytest.mark.parametrize(
    ("text", "status"),
    [("open(FILE, 'w').write('{\"problems\": []}')", "ok"), ("pass", "failed"),
     ("open(FILE, 'w').write('{\"problems\": [\"wrong\"]}')", "failed")],
)  # fmt: skip
def test_a_part_that_ends_well_is_judged_by_what_it_found(program, text, status):
    program(text)
    assert gpu.run_part("step", OPTIONS)["status"] == status


SAID = """collected 4 items
tests/gpu/test_on_an_accelerator.py::one[bfloat16 moments] PASSED   [ 25%]
tests/gpu/test_on_an_accelerator.py::two SKIPPED (there is no accelerator)    [ 50%]
tests/gpu/test_on_an_accelerator.py::three[top layer] FAILED     [ 75%]
"""


def test_tests_count_as_soon_as_they_are_over_and_failed_ones_are_named():
    found = gpu.read_tests(SAID)
    assert (found["passed"], found["skipped"], found["failed"], found["error"]) == (1, 1, 1, 0)
    assert found["problems"] == ["three[top layer]: failed"]
    end = "FAILED tests/gpu/test_on_an_accelerator.py::three[top layer] - assert 1 == 2\n"
    assert gpu.read_tests(SAID + end)["problems"] == ["three[top layer]: assert 1 == 2"]
    assert gpu.read_tests("")["problems"] == gpu.read_tests("a::b SKIPPED")["problems"] == ["no test passed"]


def test_pytest_says_what_is_read(monkeypatch):
    real = gpu.command

    def few(name, options, file):
        return [*real(name, options, file), "-k", "draws_on_the_device or runs_out or by_name"]

    monkeypatch.setattr(gpu, "command", few)
    found = gpu.run_part("tests", OPTIONS)
    assert (found["status"], found["result"]) == ("ok", {"passed": 1, "skipped": 1, "failed": 0, "error": 0})


def test_the_file_is_written_after_every_part_and_the_status_says_whether_all_is_well(program, monkeypatch, tmp_path):
    file, seen = tmp_path / "gpu.json", []
    program('open(FILE, \'w\').write(\'{"problems": [], "headline": "fast"}\')')
    original = gpu.run_part
    monkeypatch.setattr(gpu, "run_part", lambda *a: (seen.append(file.exists()), original(*a))[1])
    monkeypatch.setattr(sys, "argv", ["gpu", *f"--device cpu --tiny --parts step,rollout --json {file}".split()])
    assert gpu.main() == 0
    assert seen == [False, True]
    result = json.loads(file.read_text())
    assert {name: part["status"] for name, part in result["parts"].items()} == {"step": "ok", "rollout": "ok"}
    assert result["facts"]["name"] == result["machine"]["device"] == "cpu"
    program("raise SystemExit(3)")
    assert gpu.main() == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [("--device cpu", "--device cpu needs --tiny"), ("--parts nothing --device cpu --tiny", "unknown parts: nothing"),
     ("--device cuda:77", "device=cuda:77 is not there: this machine has")],
)  # fmt: skip
def test_wrong_options_are_refused(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["gpu", *words.split()])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_one_measurement_that_fails_does_not_stop_the_next(tmp_path, monkeypatch):
    asked = []

    def measure(model, batch, options, *, is_first):
        asked.append(options.against[0])
        if options.against == ["hf"]:
            raise torch.OutOfMemoryError("CUDA out of\nmemory")
        return {"times_best_hf": 2.0}

    monkeypatch.setattr(gpu_parts.rollout, "measure", measure)
    notes = gpu_parts.Notes(tmp_path / "result")
    gpu_parts.measure_rollout(notes, CPU, is_tiny=True)
    written = json.loads((tmp_path / "result").read_text())
    assert asked == ["hf", "hf", "hf-static", "hf-continuous"]
    assert written["problems"] == [f"hf, {k}: OutOfMemoryError: CUDA out of memory" for k in ("full length", "ragged")]
    assert written["headline"] == "2.00 x hf-static, full length; 2.00 x hf-continuous, ragged"
    assert written["greedy_same_share"] == 1.0


def test_the_step_stands_beside_the_cost_model(tmp_path):
    notes = gpu_parts.Notes(tmp_path / "result")
    gpu_parts.measure_step(notes, CPU, is_tiny=True)
    found = notes.found["shared"]
    assert notes.found["problems"] == []
    assert set(found["predicted_bytes"]) == {"rollout", "reference", "update", "optimiser"}
    assert found["predicted_peak_bytes"] == max(found["predicted_bytes"].values())
    assert found["predicted_over_measured_peak"] == found["predicted_peak_bytes"] / found["peak_memory_bytes"]


def test_the_model_of_an_accelerator_keeps_its_memory_and_pays_for_calls():
    names = [f"{d}_{k}_operations_per_second" for d in ("float32", "bfloat16") for k in ("layer", "attention")]
    rates = dict.fromkeys([*names, "read_bytes_per_second"], 1e12)
    found = measured(rates | {"calls_per_second": 2e5}, memory=1e9, start=0.0)
    assert (found.launch_seconds, found.packs_weights, found.fresh_bandwidth) == (5e-6, False, float("inf"))
    assert measured(rates | {"new_bytes_per_second": 1e9}, memory=1e9, start=0.0).packs_weights


def test_a_run_that_repeats_itself_differs_in_nothing_and_another_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(bits, "RUN", bits.RUN.replace(prompts_per_step=2, minibatch=2, microbatch=1, response_length=4))
    assert bits.compare_bits("linear", CPU, tmp_path / "a") == {"repeated": [], "resumed": []}
    draws = iter(range(10**6))
    monkeypatch.setattr(bits, "letter_e", lambda samples: [float(next(draws)) for _ in samples])
    found = bits.compare_bits("linear", CPU, tmp_path / "b")
    assert "score/mean of step 2" in found["repeated"]
    assert "value_head.layers.0.weight" in found["resumed"]


def test_nan_is_equal_to_itself_and_shapes_count():
    nan = torch.tensor([float("nan"), 1.0])
    assert bits.different({"a": nan}, {"a": nan.clone()}) == []
    assert bits.different({"a": nan, "b": nan}, {"a": nan[:1], "c": nan}) == ["a", "b", "c"]


def test_memory_of_the_cpu_is_that_of_the_process():
    assert start_memory_bytes() > 0
    with PeakMemory() as memory:
        kept = torch.ones(2**24)
        time.sleep(0.05)
    assert memory.peak_bytes >= kept.numel() * 4 * 0.9
    assert peak_memory_bytes() >= memory.peak_bytes


@pytest.mark.slow
def test_the_whole_program_on_the_cpu(tmp_path):
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json", str(file)]
    code, words = gpu.run_limited(command, os.environ | ENVIRONMENT, gpu.MOST_SECONDS)
    assert code == 0, words
    assert {part["status"] for part in json.loads(file.read_text())["parts"].values()} == {"ok"}
