"""The memory of a device in the cost model, counted by hand for a tiny shape and for one of 70B."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cost.architecture import KNOWN, Architecture
from benchmarks.cost.device import H100
from benchmarks.cost.memory import step_memory
from benchmarks.cost.parameters import count
from benchmarks.cost.plan import Plan
from benchmarks.cost.rollout import PROBES, rollout_work
from benchmarks.cost.work import reference_work
from tests.benchmarks.test_cost_model import ENDS, SLOW, TINY

LASTING = ("policy", "critic", "reference", "moments")


def test_memory_of_a_tiny_run():
    memory = step_memory(TINY, Plan(prompts=2, prompt_length=3, response_length=2), SLOW)
    lasting = {"policy": 1200, "critic": 20, "reference": 1200, "moments": 2440}
    for phase in memory.phases.values():
        assert lasting.items() <= phase.items()
    assert memory.phases["optimiser"]["gradients"] == 4 * 305
    # The cache has a buffer more than layers, 2 rows of 5 columns; a block of 6 prompt tokens; keys and values 2 wide.
    assert memory.phases["rollout"]["key/value cache"] == 4 * 2 * 2 * (3 * 2 * 5 + 2 * 6)
    assert memory.phases["rollout"]["decoder's copies"] == 4 * 2 * (4 * 8 + 2 * 24)  # joined: QKV, gate and up


def test_a_rollout_from_weights_that_are_never_whole():
    plan = Plan(
        prompts=4, prompt_length=3, response_length=2, devices=2, sharding="fsdp", gather_for_rollouts=False,
        precision="autocast",
    )  # fmt: skip
    memory = step_memory(TINY, plan, SLOW).phases
    root, block = 10 * 4 + 4 + 5, 128  # tied table, last norm, value head
    assert memory["rollout"]["gathered blocks"] == 4 * (root + 2 * block)
    assert memory["rollout"]["key/value cache"] == 4 * 2 * 2 * (3 * 2 * 5)  # one layer's twice, while it grows
    assert "decoder's copies" not in memory["rollout"]
    assert memory["rollout"]["reference"] == 4 * (2 * block / 2 + 10 * 4 + 4)  # outside its blocks the copy is whole
    assert memory["reference"]["gathered blocks"] == 4 * (root + 3 * block)  # the old policy is asked, one block ahead
    assert memory["reference"]["casts"] == 2 * 2 * 120  # autocast keeps them without gradients, too
    gathered = step_memory(TINY, replace(plan, gather_for_rollouts=True), SLOW).phases["reference"]
    assert gathered["gathered model"] == 4 * (300 + 5)
    sent = sum(piece.sent for piece in rollout_work(TINY, plan, packs_weights=False))
    assert sent == 4 * (root + 2 * block * (PROBES + 2)) / 2  # a prompt and one step, 1/2 of everything is here already
    assert sum(piece.sent for piece in reference_work(TINY, plan)) == 4 * (2 * block + 2 * block) / 2
    adapted = replace(plan, lora_rank=2)
    weights = count(TINY, adapted).policy + 5
    assert sum(piece.sent for piece in reference_work(TINY, adapted)) == 4 * (2 * weights - root) / 2


def test_split_weights_of_an_update_are_gathered_and_only_trained_ones_have_gradients():
    plan = Plan(prompts=4, prompt_length=3, response_length=2, devices=2, sharding="fsdp")
    root, block = 10 * 4 + 4 + 5, 128  # tied table, last norm, value head
    full = step_memory(TINY, plan, SLOW).phases["update"]
    assert full["gathered blocks"] == 4 * (root + 2 * block)
    assert full["gradients of gathered blocks"] == 4 * 2 * block
    assert full["gradient of the output layer"] == 4 * 40
    assert full["gradients"] == 0  # the first and only microbatch begins its backward pass
    adapter = 2 * ENDS
    lora = step_memory(TINY, replace(plan, lora_rank=2), SLOW).phases["update"]
    assert lora["gathered blocks"] == 4 * (root + 2 * (block + adapter))
    assert lora["gradients of gathered blocks"] == 4 * 2 * adapter
    assert lora["gradient of the output layer"] == 0
    again = step_memory(TINY, replace(plan, microbatch=1), SLOW).phases["update"]
    assert again["gradients"] == 4 * (300 + 5) / 2  # this device's half, of the microbatch before


def test_a_large_table_makes_the_ends_of_an_update_the_fullest():
    arch = replace(TINY, vocabulary=100_000)
    table, rest = 400_000, 4 + 5
    plan = Plan(prompts=4, prompt_length=3, response_length=2, devices=2, sharding="fsdp")
    assert step_memory(arch, replace(plan, lora_rank=2), SLOW).phases["update"] == pytest.approx(
        lasting(arch, replace(plan, lora_rank=2))
        # As it begins: what lies outside the blocks has arrived and is copied out, and one block follows.
        | {"gradients": 0, "gathered blocks": 4 * (2 * (table + rest) + 128 + 2 * ENDS)}
    )
    end = step_memory(arch, plan, SLOW).phases["update"]
    assert end["gradients"] == 4 * (table + 4 + 5 + 2 * 128) / 2
    assert end["gathered blocks"] == 4 * (table + rest)
    assert end["gradients of gathered blocks"] == 4 * (table + rest + 128)
    assert end["gradient of the output layer"] == 4 * table  # the embedding's own, before both are one
    untied = step_memory(replace(arch, is_tied=False), plan, SLOW).phases["update"]
    assert untied["gradients of gathered blocks"] == 4 * (2 * table + rest + 128)
    assert untied["gradient of the output layer"] == 0  # in what is gathered


def lasting(arch: Architecture, plan: Plan) -> dict[str, float]:
    return {name: step_memory(arch, plan, SLOW).phases["optimiser"][name] for name in LASTING}


def test_gradients_are_not_counted_twice_on_one_device():
    arch = replace(TINY, vocabulary=100_000)
    plan = Plan(prompts=1, prompt_length=3, response_length=2)
    start = step_memory(arch, plan, SLOW).phases["update"]
    assert (start["gradients"], start["gradient of the output layer"]) == (0, 4 * 400_000)
    deep = replace(TINY, layers=10_000)  # weights outweigh what a few tokens keep
    end = step_memory(deep, replace(plan, gradient_checkpointing=True), SLOW).phases["update"]
    assert end["gradients"] == 4 * count(deep, plan).trained
    assert "gradient of the output layer" not in end


def test_llama_70b_with_adapters_on_eight_devices():
    plan = Plan(
        prompts=256, minibatch=64, epochs=8, precision="autocast", devices=8, sharding="fsdp", lora_rank=16,
        gather_for_rollouts=False, gradient_checkpointing=True,
    )  # fmt: skip
    parts = step_memory(KNOWN["llama-3.1-70b"], plan, H100).phases["update"]
    root = 2 * 128256 * 8192 + 8192 + 8193
    block = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    ends = 2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672)
    begins = 4 * (2 * root + block + 16 * ends)
    assert parts["gathered blocks"] == begins == pytest.approx(20.24e9, rel=1e-3)
    others = sum(size for name, size in parts.items() if name != "gathered blocks")
    own = 4 * (root - 8193 + 80 * (block + 16 * ends)) / 8
    assert parts["policy"] == own == pytest.approx(35.4e9, rel=1e-2)
    assert others - own < 0.3e9  # the adapters' moments; nothing that is frozen has a gradient
