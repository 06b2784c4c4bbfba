"""The cost model beside what torch and transformers count in real models: operations, activations, forwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
)

from benchmarks.cost.architecture import from_config
from benchmarks.cost.kept import kept_activations
from benchmarks.cost.plan import Plan
from benchmarks.cost.rollout import rollout_work
from benchmarks.cost.work import update_work
from models.lora import LoraConfig, add_lora
from ppo import Sampling, generate
from ppo.lm.backbone import blocks
from tests.versions import since_torch

# ---------------------------------------------------------------------- beside real models

FAMILIES = ("gpt-neo", "opt", "llama")
TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "c_fc", "c_proj", "fc1",
    "fc2",
)  # fmt: skip
ROWS, LENGTH = 2, 32


def family(name: str):
    """A small model with a vocabulary so small that it hardly counts, and its shape."""
    sizes = {"vocab_size": 8, "max_position_embeddings": 40}
    config = {
        "gpt-neo": GPTNeoConfig(
            hidden_size=64, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], **sizes
        ),
        "opt": OPTConfig(
            hidden_size=64, word_embed_proj_dim=64, num_hidden_layers=4, num_attention_heads=4, ffn_dim=192, **sizes
        ),
        "llama": LlamaConfig(
            hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160,
            **sizes,
        ),
    }[name]  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval(), from_config(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_operations_are_those_that_torch_counts(name):
    model, arch = family(name)
    model.set_attn_implementation("eager")  # torch's counter does not know the fused kernel of the CPU
    arch = replace(arch, has_fused_attention=False)
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    plan = Plan(prompts=ROWS, prompt_length=LENGTH - 1, response_length=1, epochs=1)
    work = {piece.name: piece.operations for piece in update_work(arch, plan)}
    # Older versions of transformers rotate by a matrix product, which counts: 2e-5 of the operations.
    forward = work["forward policy"] + work["forward policy, attention"]
    assert counter.get_total_flops() == pytest.approx(forward, rel=5e-5)
    with counter:
        hidden.sum().backward()
    assert counter.get_total_flops() == work["backward policy"] + work["backward policy, attention"]


def test_operations_of_a_run_are_those_that_torch_counts_for_adapters():
    model, arch = family("llama")
    model.set_attn_implementation("eager")
    add_lora(model, LoraConfig(TARGETS, rank=4))
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.base_model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    plan = Plan(prompts=ROWS, prompt_length=LENGTH - 1, response_length=1, epochs=1, lora_rank=4)
    work = update_work(replace(arch, has_fused_attention=False), plan)
    counted = sum(piece.operations for piece in work if piece.name.split()[0] in ("forward", "backward"))
    # Nothing below the first block is trained: its query, key and value need no gradient of their input.
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=since_torch("2.9", "keeps less for attention whose heads share keys"))
        if name == "llama"
        else name
        for name in FAMILIES
    ],
)
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16", "adapter"])
def test_activations_are_those_that_autograd_keeps(name, precision):
    model, arch = family(name)
    lora_rank = 0
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    if precision == "adapter":
        precision, lora_rank = "float32", 4
        add_lora(model, LoraConfig(TARGETS, rank=lora_rank))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
    plan = Plan(prompts=ROWS, prompt_length=LENGTH - 1, response_length=1, precision=precision, lora_rank=lora_rank)
    predicted = kept_activations(arch, plan, ROWS * LENGTH)
    if name == "gpt-neo" and precision == "autocast":  # CUDA computes GELU's power, and all behind it, in float32
        predicted -= 6 * arch.mlp_width * arch.layers * ROWS * LENGTH
    assert predicted == pytest.approx(sum(kept.values()), rel=0.1)
    assert hidden.requires_grad


@pytest.mark.parametrize("name", FAMILIES)
def test_forwards_of_a_rollout_are_those_of_the_models_own_engine(name):
    model, arch = family(name)

    def sample() -> None:
        sampling = Sampling(response_length=4, eos_ids=())
        generate(model, [[1, 2, 3], [2, 2, 3], [3, 2, 3]], sampling, slots=2, engine="hf")

    passes: list[int] = []
    blocks(model)[0].register_forward_hook(lambda *_: passes.append(1))
    sample()  # the first one tries what the cache can do
    passes.clear()
    sample()
    plan = Plan(
        prompts=6, prompt_length=3, response_length=4, devices=2, sharding="fsdp", gather_for_rollouts=False,
        rollout_slots=2,
    )  # fmt: skip
    work = {piece.name: piece for piece in rollout_work(arch, plan, packs_weights=False)}
    gathered = work["all-gather, block by block"].sent
    assert gathered == len(passes) * 4 * arch.layers * arch.block_parameters / 2
