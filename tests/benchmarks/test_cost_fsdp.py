"""The memory of an update under FSDP2, in two processes on the CPU, beside the cost model's prediction. Linux only.

    torchrun --nproc-per-node 2 -m tests.benchmarks.test_cost_fsdp FOLDER

leaves ``FOLDER/held.json``: of every case how far the process's memory rose in an update, in bytes. The C library is
told to give freed memory back at once, so that this is what the update held.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import ppo
from benchmarks.cost.architecture import from_config
from benchmarks.cost.device import H100
from benchmarks.cost.memory import step_memory
from benchmarks.cost.plan import Plan
from benchmarks.models import llama_config, make_model, random_prompts
from models.lora import LoraConfig, add_lora, linear_targets
from ppo.distributed import Processes
from tests.processes import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, tells glibc")]

SHAPE, STEP = "random:small-llama", {"prompts": 8, "prompt_length": 20, "response_length": 20, "epochs": 1}
BLOCKS = {"vocab_size": 1024}  # a model that is mostly blocks; the others are mostly embeddings
UNTIED = {"tie_word_embeddings": False}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {"microbatch": 2}),
    "full untied": (UNTIED, {"microbatch": 2}),
    "full checkpointed": (UNTIED, {"gradient_checkpointing": True}),
    "full of blocks": (BLOCKS, {"microbatch": 2}),
    "lora": ({}, {"microbatch": 2, "lora_rank": 8}),
    "lora untied": (UNTIED, {"microbatch": 2, "lora_rank": 8}),
    "lora of blocks": (BLOCKS, {"lora_rank": 8}),
}


def held_bytes(shape: dict[str, Any], changes: dict[str, Any]) -> int:
    model = make_model(SHAPE, **shape)
    settings = dict(changes)
    if rank := settings.pop("lora_rank", 0):
        add_lora(model, LoraConfig(linear_targets(model), rank=rank))
    config = ppo.Config(
        prompts_per_step=STEP["prompts"], minibatch=STEP["prompts"], response_length=STEP["response_length"],
        min_response_length=STEP["response_length"], epochs=STEP["epochs"], sharding="fsdp", **settings,
    )  # fmt: skip
    prompts = random_prompts(model, STEP["prompts"], STEP["prompt_length"])
    trainer = ppo.Trainer(model, prompts, lambda samples: [float(sum(s.ids) % 7) for s in samples], config)
    trainer.update(trainer.rollout())  # makes Adam's moments
    rollout = trainer.rollout()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again
    before = status_bytes("VmRSS")
    trainer.update(rollout)
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def give_freed_memory_back() -> None:
    for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        assert ctypes.CDLL(None).mallopt(option, 2**16) == 1


def predicted_bytes(shape: dict[str, Any], changes: dict[str, Any]) -> float:
    plan = Plan(**STEP, **changes, devices=2, sharding="fsdp")
    parts = step_memory(from_config(llama_config(SHAPE, **shape)), plan, H100).phases["update"]
    return sum(size for name, size in parts.items() if name not in ("policy", "critic", "reference", "moments"))


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    done = torchrun("-m", "tests.benchmarks.test_cost_fsdp", str(folder))
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((folder / "held.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES)
def test_memory_of_an_update_is_what_two_processes_hold(held, case):
    ratio = held[case] / predicted_bytes(*CASES[case])
    print(f"{case}: measured / predicted {ratio:.2f}")
    assert 0.8 < ratio < 1.2  # gloo copies what it sends once more


if __name__ == "__main__":
    give_freed_memory_back()
    with ppo.process_group():
        found = {name: held_bytes(*case) for name, case in CASES.items()}
        if Processes.current().is_first:
            (Path(sys.argv[1]) / "held.json").write_text(json.dumps(found), encoding="utf-8")
