"""The library on a real accelerator, beside the CPU and beside itself. ``python -m benchmarks.gpu`` runs these tests.

The CPU is the oracle: log-probs, losses and gradients of the same tokens agree within rounding. Bits are compared on
the accelerator alone. Products in float32 must be whole ones (no TF32), which is torch's default.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import ppo
from models.lora import LoraConfig, add_lora, linear_targets
from ppo.actor_critic import ActorCritic
from ppo.checks.dump import on_device
from ppo.generation.decoders import bind
from ppo.lm.device import move
from ppo.run.limits import retry_smaller
from tests.fakes import Letters, TableCritic, tiny_bloom, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10], [11, 12], [3, 3], [4, 9, 2, 8], [20], [7, 6, 5]]
CONFIG = ppo.Config(
    prompts_per_step=8, minibatch=4, response_length=8, rollout_slots=5, epochs=2, learning_rate=3e-3, kl_coef=0.1,
    deterministic=True, seed=3,
)  # fmt: skip
CASES = {
    "linear": {},
    "mlp": {"value_head": "mlp", "microbatch": 1},
    "critic": {"value_head": "critic", "old_logprobs": "recompute", "microbatch": 2},
    "grpo": {"advantage": "grpo", "samples_per_prompt": 4},
    "filters": {"top_k": 9, "top_p": 0.9, "temperature": 0.8, "kept_sets": "replay"},
    "importance": {"importance": "sequence", "old_logprobs": "recompute"},
    "autocast": {"autocast": "bfloat16", "reference_dtype": "bfloat16", "gradient_checkpointing": True},
    "bfloat16 moments": {"moment_dtype": "bfloat16"},
    "retain": {"retain_coef": 0.5, "retain_loss": "kl", "retain_sequences": 2, "retain_tokens": 6},
    "top layer": {"train_top_layers": 1},
}


def reward(samples):
    return [sum(s.ids) % 7 - 0.3 * len(s.ids) for s in samples]


def trainer(device, model=None, **changes):
    config = CONFIG.replace(**changes)
    retain = [[2, 3, 4, 5, 6, 7, 8]] * 4 if config.retain_coef else None
    return ppo.Trainer(model or tiny_llama(), PROMPTS, reward, config, retain=retain, device=device)


def weights(trained):
    return {name: p.detach().cpu().clone() for name, p in trained.policy.actor.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def numbers(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "generate/"))}


# ---------------------------------------------------------------------- sampling


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_bloom])
@pytest.mark.parametrize("engine", ["auto", "hf"])
def test_the_same_tokens_as_on_the_cpu(device, build, engine):
    """Random numbers are the CPU's, so even sampled tokens are the same, as long as no number lies on an edge."""
    model, sampling = build().eval(), ppo.Sampling(response_length=12, num_samples=2, eos_ids=(1,))
    expected = ppo.generate(model, PROMPTS, sampling, seed=5, engine=engine)
    move(model, device)
    found = ppo.generate(model, PROMPTS, sampling, seed=5, engine=engine, slots=3)
    assert found.tokens.device == device
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    assert torch.equal(found.mask.cpu(), expected.mask)
    torch.testing.assert_close(found.logprobs.cpu(), expected.logprobs, **CLOSE)
    torch.testing.assert_close(found.entropy.cpu(), expected.entropy, **CLOSE)


def test_the_fast_decoder_is_taken_and_agrees_with_the_models_own_forward(device):
    model = move_of(tiny_llama(), device)
    network = bind(model, rows=4, length=20)
    assert network is not None
    assert network.device == device
    greedy = ppo.Sampling(response_length=12, temperature=0.0)
    fast, own = (ppo.generate(model, PROMPTS, greedy, engine=engine) for engine in ("auto", "hf"))
    assert fast.metrics["generate/is_fast"] == 1
    assert torch.equal(fast.tokens, own.tokens)
    expected = model.generate(
        torch.tensor([PROMPTS[2]], device=device), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=1
    )[0, len(PROMPTS[2]) :]
    assert fast.tokens[2][fast.mask[2]].tolist() == expected.tolist()


def test_drafts_change_nothing(device):
    model, sampling = move_of(tiny_llama(), device), ppo.Sampling(response_length=10)
    plain = ppo.generate(model, PROMPTS, sampling)
    true = [row[mask].tolist() for row, mask in zip(plain.tokens, plain.mask, strict=True)]
    drafted = ppo.generate(model, PROMPTS, sampling, drafts=true)
    assert torch.equal(drafted.tokens, plain.tokens)
    assert drafted.metrics["generate/draft_acceptance"] > 0.9


def move_of(model, device):
    move(model.eval(), device)
    return model


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_cpu_within_rounding(device, name):
    """The CPU's rollout goes through both updates: same losses, and weights that moved the same way."""
    here, there = trainer(CPU, **CASES[name]), trainer(device, **CASES[name])
    assert there.device == device
    rollout, _ = here.rollout(), there.rollout()  # both, so that their generators stand at the same place
    start, moved = weights(here), on_device(rollout, device)
    expected, found = numbers(here.update(rollout)), numbers(there.update(moved))
    is_coarse = "autocast" in name or "bfloat16" in name
    rel, most = (0.1, 2e-2) if is_coarse else (1e-2, 1e-3)
    compared = [
        k for k in ("policy/loss", "policy/approx_kl", "policy/entropy", "value/loss", "retain/loss") if k in expected
    ]
    assert len(compared) >= 3
    for key in compared:
        assert found[key] == pytest.approx(expected[key], rel=rel, abs=most), key
    if not is_coarse:
        ways = [(weights(run)[n] - start[n]).flatten() for run in (here, there) for n in start]
        left, right = torch.cat(ways[: len(start)]), torch.cat(ways[len(start) :])
        assert float(torch.nn.functional.cosine_similarity(left, right, dim=0)) > 0.99


@pytest.mark.parametrize("name", CASES)
def test_a_whole_step_runs_there(device, name):
    """Sampled, scored, measured and trained on the device, with no gap between sampler and training forward."""
    run = trainer(device, **CASES[name])
    for _ in range(2):
        rollout = run.rollout()
        assert rollout.advantages.device == device
        metrics = run.update(rollout)
        limit = 0.3 if "autocast" in name else 5e-3
        assert abs(metrics["rollout/logprob_gap"]) < limit
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert {p.device for p in run.policy.actor.parameters()} == {device}


def test_an_adapter_an_own_critic_and_an_own_reference_follow(device):
    model = tiny_gpt2()
    add_lora(model, LoraConfig(linear_targets(model), rank=2))
    there = ppo.FrozenReference(tiny_gpt2(seed=1), CONFIG.sampling())  # stays on the CPU
    critic = TableCritic()
    run = ppo.Trainer(
        model, PROMPTS, reward, CONFIG.replace(advantage="gae"), value=critic, reference=there, device=device
    )
    metrics = run.update(run.rollout())
    assert {p.device for p in (*run.policy.actor.parameters(), *critic.parameters())} == {device}
    assert next(there.model.parameters()).device == CPU
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


def test_gradients_in_float64_are_those_of_the_cpu(device):
    if device.type == "mps":
        pytest.skip("MPS has no float64")
    model = tiny_llama().double().eval()
    generation = ppo.generate(model, PROMPTS, ppo.Sampling(response_length=8))
    found = []
    for place in (CPU, device):
        actor = ActorCritic(move_of(copy.deepcopy(model), place), value_head="linear")
        evaluation = actor.evaluate(generation.to(place), ppo.Sampling(response_length=8), chunk_tokens=7)
        (evaluation.logprobs.sum() + evaluation.values.square().sum()).backward()
        found.append([p.grad.cpu() for p in actor.parameters() if p.grad is not None])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------- bits, checkpoints, memory


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_goes_on_to_the_same_bits(device, name, tmp_path):
    whole = trainer(device, **CASES[name])
    whole.update(whole.rollout())
    whole.save(tmp_path / "checkpoint")
    expected = [numbers(whole.update(whole.rollout())) for _ in range(2)]
    retain = [[2, 3, 4, 5, 6, 7, 8]] * 4 if whole.config.retain_coef else None
    again = ppo.Trainer.resume(tmp_path / "checkpoint", PROMPTS, reward, retain=retain)
    assert again.device == device
    assert [numbers(again.update(again.rollout())) for _ in range(2)] == expected
    assert_same(weights(again), weights(whole))


def test_a_checkpoint_goes_to_another_kind_of_device_and_back(device, tmp_path):
    trainer(device).save(tmp_path / "there")
    here = ppo.Trainer.resume(tmp_path / "there", PROMPTS, reward, device="cpu")
    assert here.device == CPU
    here.save(tmp_path / "here")
    back = ppo.Trainer.resume(tmp_path / "here", PROMPTS, reward, device=device)
    assert back.device == device
    assert_same(weights(back), weights(here))
    back.update(back.rollout())


def test_a_reward_that_draws_on_the_device_is_resumed_to_the_same_bits(device, tmp_path):
    def noisy(samples):
        return torch.rand(len(samples), device=device)

    whole = ppo.Trainer(tiny_llama(), PROMPTS, noisy, CONFIG, device=device)
    whole.save(tmp_path / "checkpoint")
    expected = whole.rollout().scores
    again = ppo.Trainer.resume(tmp_path / "checkpoint", PROMPTS, noisy)
    assert torch.equal(again.rollout().scores, expected)


def test_a_reward_with_a_time_limit_runs_on_the_same_device(device):
    run = ppo.Trainer(
        tiny_llama(), PROMPTS, lambda samples: torch.ones(len(samples), device=device),
        replace(CONFIG, reward_timeout_seconds=60.0), device=device,
    )  # fmt: skip
    assert run.rollout().scores.tolist() == [1.0] * 8


def test_memory_that_runs_out_is_told_from_other_errors(device):
    if device.type == "cpu":
        pytest.skip("the CPU hands out memory that it does not have")
    asked = [2**52]

    def ask():
        return torch.empty(asked[0], device=device)

    def shrink():
        asked[0] = 4
        return True

    assert retry_smaller(ask, shrink).shape == (4,)


def test_a_name_is_loaded_onto_it(device, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    found = ppo.generate(tmp_path, PROMPTS, ppo.Sampling(response_length=4), tokenizer=Letters(), device=device)
    assert found.tokens.device == device
    run = ppo.Trainer(tmp_path, PROMPTS, reward, CONFIG, tokenizer=Letters(), device=device, dtype="bfloat16")
    assert run.device == device
    run.update(run.rollout())


# ---------------------------------------------------------------------- last, because it takes longest


def test_the_compiled_step_samples_the_same(device):
    model, greedy = move_of(tiny_llama(), device), ppo.Sampling(response_length=10, temperature=0.0)
    plain = ppo.generate(model, PROMPTS, greedy, slots=4)
    for _ in range(2):  # the second call replays what the first one recorded
        compiled = ppo.generate(model, PROMPTS, greedy, slots=4, compiled=True)
        assert torch.equal(compiled.tokens, plain.tokens)
        torch.testing.assert_close(compiled.logprobs, plain.logprobs, **CLOSE)
