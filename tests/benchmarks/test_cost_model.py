"""The cost model, counted by hand for a tiny shape: what must grow, what must not, and what makes a step fit."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
)

from benchmarks.cost.architecture import KNOWN, Architecture, from_config
from benchmarks.cost.attention import attention_operations
from benchmarks.cost.device import H100, Device, Work
from benchmarks.cost.estimate import estimate, remedies
from benchmarks.cost.parameters import count
from benchmarks.cost.plan import Plan
from benchmarks.cost.rollout import PROBES, rollout_work
from benchmarks.cost.work import reference_work, update_work
from benchmarks.cost_model import read_options
from benchmarks.models import llama_config

TINY = Architecture(
    "tiny", layers=2, width=4, heads=2, kv_heads=1, head_width=2, mlp_width=6, vocabulary=10,
    is_gated=True, norm="rms", activation="silu",
)  # fmt: skip
"""One block: query and out 16 weights, key and value 8, gate, up and down 24: 120, and two norms of 4."""

SLOW = Device(
    "slow", memory=1e9, bandwidth=1e6, link=1e5, network=1e4,
    operations={"float32": 1e6, "bfloat16": 4e6, "float32 attention": 1e6, "bfloat16 attention": 4e6},
)  # fmt: skip

ENDS = (4 + 4) + 2 * (4 + 2) + (4 + 4) + 2 * (4 + 6) + (6 + 4)  # inputs and outputs of a tiny block's linear layers

NEO_1B = {"attention_types": [[["global", "local"], 12]], "num_layers": 24, "hidden_size": 2048, "num_heads": 16}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=61, n_embd=24, n_layer=3, n_head=2, n_positions=40),
    "gpt-neo": GPTNeoConfig(
        vocab_size=61, hidden_size=24, num_layers=2, num_heads=2, max_position_embeddings=40,
        attention_types=[[["global", "local"], 1]],
    ),
    "opt": OPTConfig(
        vocab_size=61, hidden_size=24, word_embed_proj_dim=24, num_hidden_layers=3, num_attention_heads=2, ffn_dim=50,
        max_position_embeddings=40,
    ),
    "llama": LlamaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=50, tie_word_embeddings=False,
    ),
    "biased llama": LlamaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=50, attention_bias=True, mlp_bias=True, head_dim=8,
    ),
    "smollm2-135m": llama_config("random:smollm2"),
    "gpt-neo-1.3b": GPTNeoConfig(**NEO_1B),
    "opt-1.3b": OPTConfig(hidden_size=2048, word_embed_proj_dim=2048, num_hidden_layers=24, num_attention_heads=32,
                          ffn_dim=8192),
    "opt-125m": OPTConfig(hidden_size=768, word_embed_proj_dim=768, num_hidden_layers=12, num_attention_heads=12,
                          ffn_dim=3072),
    "opt-2.7b": OPTConfig(hidden_size=2560, word_embed_proj_dim=2560, num_hidden_layers=32, num_attention_heads=32,
                          ffn_dim=10240),
    "llama-3.1-70b": LlamaConfig(
        vocab_size=128256, hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_real_model(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
        model.tie_weights()  # transformers 5.0 leaves this out on "meta"
    assert from_config(CONFIGS[name]).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(set(CONFIGS) & set(KNOWN)))
def test_known_shapes_are_those_of_their_configs(name):
    assert from_config(CONFIGS[name], name) == KNOWN[name]


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="mixtral"):
        from_config(MixtralConfig())


# ---------------------------------------------------------------------- counted by hand


def test_counts_of_a_tiny_shape():
    assert TINY.block_parameters == 120 + 8
    assert TINY.parameters == 2 * 128 + 10 * 4 + 4  # blocks, tied table, final norm
    # 3 tokens: two products of width 4 over the 6 pairs that a causal mask leaves, 2 operations each, in both layers.
    assert attention_operations(TINY, 3, 3, 2) == 2 * (2 * 2 * 4 * 6)
    shared = count(TINY, Plan())
    assert (shared.policy, shared.critic, shared.copied, shared.trained) == (300, 5, 300, 305)
    critic = count(TINY, Plan(value_head="critic"))
    assert (critic.critic, critic.trained) == (305, 605)
    untied = count(replace(TINY, is_tied=False), Plan(value_head="critic"))
    assert (untied.critic, untied.trained) == (345, 340 + 345 - 40)  # the critic's own output layer never moves
    adapted = count(TINY, Plan(lora_rank=2))
    assert (adapted.trained, adapted.copied) == (2 * 2 * ENDS + 5, 0)
    assert (adapted.trained_root, adapted.trained_block) == (5, 2 * ENDS)
    assert (untied.trained_root, untied.trained_block) == (40 + 40 + 4 + 40 + 4 + 5, 128)
    assert count(TINY, Plan(train_top_layers=1)).trained == 128 + 5


def test_operations_of_a_tiny_step():
    plan = Plan(prompts=2, prompt_length=3, response_length=2, epochs=3)
    work = {piece.name: piece for piece in update_work(TINY, plan)}
    assert work["forward policy"].operations == 3 * 2 * 2 * (2 * 5 * 120)  # epochs, sequences, layers; 5 tokens
    assert work["forward policy, attention"].operations == 3 * 2 * 2 * (2 * 2 * 4 * 15)  # 15 pairs
    assert work["backward policy"].operations == 3 * 2 * 2 * (4 * 5 * 120)
    assert work["backward policy, attention"].operations == 3 * 2 * 2 * (2.5 * 2 * 2 * 4 * 15)
    assert work["output forward"].operations == 3 * 2 * 2 * (2 * 40)  # 2 response tokens, 40 weights
    assert work["output backward"].operations == 3 * 2 * 2 * (6 * 40)  # the tile again, its rows, its weights
    assert work["optimiser"].moved == 3 * 305 * (7 + 3) * 4
    rollout = {piece.name: piece for piece in rollout_work(TINY, plan, packs_weights=False)}
    weights, columns = 2 * 120 + 40, 5  # the cache is as wide as the whole sequence here
    assert rollout["decode"].operations == 2 * weights * 2  # one step of two rows: the first token is prefill's
    assert rollout["decode"].moved == 4 * weights
    assert rollout["decode, attention"].operations == 2 * 4 * 4 * columns * 2
    assert rollout["decode, attention"].moved == 4 * 2 * 2 * 2 * columns * 2  # keys and values, 2 wide, of 2 layers
    assert rollout["sampling"].moved == 8 * 4 * 10 * (2 * 2)  # every token's logits, the first one's too


def test_unfused_attention_is_not_computed_again_in_the_backward_pass():
    plan = Plan(prompts=2, prompt_length=3, response_length=2, epochs=3)
    work = {piece.name: piece for piece in update_work(replace(TINY, has_fused_attention=False), plan)}
    assert work["forward policy, attention"].operations == 3 * 2 * 2 * (2 * 2 * 4 * 25)  # all 25 pairs
    assert work["backward policy, attention"].operations == 3 * 2 * 2 * (4 * 2 * 4 * 25)


def test_only_what_the_sampler_cannot_say_is_asked_again():
    def asked(**changes) -> list[str]:
        plan = Plan(prompts=2, prompt_length=3, response_length=2, **changes)
        return [piece.name for piece in reference_work(TINY, plan) if piece.name in ("old policy", "old critic")]

    assert asked() == []
    assert asked(value_head="critic") == ["old critic"]
    assert asked(precision="autocast") == ["old policy"]
    assert asked(precision="autocast", value_head="critic") == ["old policy", "old critic"]


def test_seconds_are_the_slowest_resource_and_the_link():
    assert SLOW.seconds([Work("update", "x", moved=1e6, fresh=1e9)]) == pytest.approx(1)
    assert replace(SLOW, fresh_bandwidth=1e8).seconds([Work("update", "x", moved=1e6, fresh=1e8)]) == pytest.approx(2)
    assert SLOW.seconds([Work("update", "x", operations=2e6, moved=1e6)]) == pytest.approx(2)
    assert SLOW.seconds([Work("update", "x", operations=2e6, moved=1e6, rate="bfloat16")]) == pytest.approx(1)
    assert SLOW.seconds([Work("update", "x", moved=1e6, sent=1e5)], devices=8) == pytest.approx(1 + 1)
    assert SLOW.seconds([Work("update", "x", sent=1e5)], devices=9) == pytest.approx(10)
    launched = replace(SLOW, launch_seconds=0.5)
    assert launched.seconds([Work("update", "x", operations=1e6, launches=4)]) == pytest.approx(2)


# ---------------------------------------------------------------------- what must grow, and what must not


def peak(name: str, **changes) -> float:
    return estimate(KNOWN[name], Plan(prompts=64, **changes), H100).memory.peak


def seconds(name: str, **changes) -> float:
    return estimate(KNOWN[name], Plan(**{"prompts": 64, **changes}), H100).seconds()


def test_more_of_anything_costs_more():
    base = seconds("opt-1.3b")
    for change in ({"prompts": 128}, {"response_length": 100}, {"epochs": 8}, {"value_head": "critic"},
                   {"gradient_checkpointing": True}, {"devices": 2, "prompts": 128}):  # fmt: skip
        assert seconds("opt-1.3b", **change) > base
    assert seconds("gpt-neo-2.7b") > seconds("gpt-neo-1.3b") > seconds("gpt-neo-125m")
    for change in ({"precision": "autocast"}, {"lora_rank": 8}, {"train_top_layers": 4}, {"reference": "none"}):
        assert seconds("opt-1.3b", **change) < base


def test_what_saves_memory_saves_it():
    base = peak("opt-1.3b")
    for change in ({"gradient_checkpointing": True}, {"microbatch": 4}, {"reference": "copy-bfloat16"},
                   {"lora_rank": 8}, {"train_top_layers": 4}, {"precision": "bfloat16"}, {"devices": 8},
                   {"devices": 8, "sharding": "fsdp"}):  # fmt: skip
        assert peak("opt-1.3b", **change) < base
    assert peak("opt-1.3b", value_head="critic") > base
    assert peak("opt-1.3b", devices=8, sharding="fsdp") < peak("opt-1.3b", devices=8)


def test_one_device_sends_nothing_and_splitting_sends_more():
    def sent(**changes):
        return estimate(KNOWN["gpt-neo-1.3b"], Plan(prompts=64, **changes), H100).sent

    assert sent() == 0
    assert 0 < sent(devices=8) < sent(devices=8, sharding="fsdp") < sent(devices=8, sharding="fsdp", microbatch=1)
    # A ring of 8 passes on 7/8 of the gradients twice, for each of 4 epochs' one step.
    assert sent(devices=8) == pytest.approx(4 * 2 * 7 / 8 * 4 * (KNOWN["gpt-neo-1.3b"].parameters + 2049))


def test_weights_that_are_never_whole_take_less_memory_and_are_sent_for_every_token():
    whole = Plan(prompts=64, devices=8, sharding="fsdp")
    split = replace(whole, gather_for_rollouts=False)
    for name in ("opt-1.3b", "llama-3.1-70b"):
        arch = KNOWN[name]
        for lora_rank in (0, 8):
            one, other = (estimate(arch, replace(plan, lora_rank=lora_rank), H100) for plan in (whole, split))
            for phase in ("rollout", "reference"):
                assert other.memory.total(phase) < one.memory.total(phase)
            for phase in ("update", "optimiser"):
                assert other.memory.phases[phase] == one.memory.phases[phase]
            assert other.seconds("rollout") > one.seconds("rollout")
            assert other.seconds("update") == one.seconds("update")
            more = other.sent - one.sent
            assert more == pytest.approx(
                7 / 8 * 4 * arch.layers * count(arch, other.plan).block * (PROBES + split.response_length - 1)
            )
        longer = estimate(arch, replace(split, response_length=51), H100).sent - estimate(arch, split, H100).sent
        assert longer == 7 / 8 * 4 * arch.layers * arch.block_parameters
    alone = replace(split, devices=1)  # nothing is split there
    assert estimate(arch, alone, H100) == replace(estimate(arch, Plan(prompts=64), H100), plan=alone)


def test_a_plan_that_cannot_be_dealt_out_is_refused():
    for wrong in ({"prompts": 10, "devices": 4}, {"minibatch": 6, "prompts": 32}, {"microbatch": 3, "minibatch": 8},
                  {"lora_rank": 4, "train_top_layers": 1}, {"sharding": "fsdp", "precision": "bfloat16"},
                  {"sharding": "fsdp", "value_head": "critic", "lora_rank": 4}, {"epochs": 0},
                  {"gather_for_rollouts": False}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Plan(**wrong)


# ---------------------------------------------------------------------- remedies and options


def test_remedies_stop_where_it_fits_and_say_so_where_it_never_does():
    plan = Plan(prompts=64, devices=8, value_head="critic", precision="autocast")
    names, found = remedies(KNOWN["gpt-neo-2.7b"], plan, H100)
    assert found.fits
    assert names
    assert not estimate(KNOWN["gpt-neo-2.7b"], plan, H100).fits
    large = KNOWN["llama-3.1-70b"]
    names, found = remedies(large, Plan(prompts=64, precision="autocast"), H100)
    assert not found.fits
    assert found.plan.lora_rank > 0
    names, found = remedies(large, plan, H100)  # a split critic and an adapter do not go together
    assert found.fits
    assert found.plan.is_never_whole
    assert {"gather_for_rollouts=False", "value_head='linear'", "LoRA of rank 16"} < set(names)
    assert remedies(KNOWN["gpt-neo-125m"], Plan(), H100)[0] == []


def test_every_field_of_a_plan_is_an_option(monkeypatch):
    monkeypatch.setattr("sys.argv", ["cost_model", "--sharding", "fsdp", "--no-gather-for-rollouts"])
    options = vars(read_options())
    assert Plan(**{field.name: options[field.name] for field in fields(Plan)}) == Plan(
        sharding="fsdp", gather_for_rollouts=False
    )
    monkeypatch.setattr("sys.argv", ["cost_model"])
    assert read_options().gather_for_rollouts
