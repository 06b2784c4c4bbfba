"""Two PPO steps on the pretend device are those of the CPU, whatever the config says and whatever is handed in."""

import json

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import ppo
from models.lora import LoraConfig, adapters, add_lora
from ppo import Config, EnvironmentSampler, Trainer, turn_rewards
from ppo.given import given_responses
from tests.accelerator.device import DEVICE
from tests.accelerator.runs import (
    PROMPTS,
    assert_both_devices_agree,
    assert_same,
    cases,
    is_clock,
    length_of,
    numbers_of,
    trainer,
    two_steps,
)
from tests.fakes import tiny_bloom, tiny_llama
from tests.ppo.test_environment import Hint

RETAIN = [[2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5]]
KEPT = {"retain_coef": 1.0, "retain_sequences": 2, "retain_tokens": 8, "microbatch": 1}

CONFIGS = {
    "critic": {"value_head": "critic"},
    "mlp": {"value_head": "mlp", "detach_value_head": True},
    "linear": {},
    "grpo": {"advantage": "grpo", "samples_per_prompt": 2, "minibatch": 4, "microbatch": 2},
    "rloo": {"advantage": "rloo", "samples_per_prompt": 2, "minibatch": 4, "microbatch_tokens": 20},
    "kl-loss": {"kl_as": "loss", "kl_estimator": "k3"},
    "moments": {"moment_dtype": "bfloat16"},
    "tensorflow-epsilon": {"adam_eps_style": "tensorflow", "warmup_steps": 2},
    "top-layers": {"train_top_layers": 1},
    "filters": {"top_p": 0.9, "top_k": 20, "temperature": 0.7, "min_response_length": 2},
    "kept-sets": {"top_p": 0.9, "kept_sets": "replay"},
    "checkpointing": {"gradient_checkpointing": True, "microbatch": 1},
    "reference-in-bfloat16": {"reference_dtype": "bfloat16"},
    "scores": {"entropy_coef": 0.01, "whiten_rewards": True, "scale_scores": True, "clip_scores": 1.0,
               "missing_eos_penalty": 1.0},
    "importance": {"importance": "token", "old_logprobs": "recompute"},
    "gspo": {"policy_loss": "gspo", "loss_mean": "sequences", "mask_overlong": True},
    "positive": {"positive_coef": 0.1, "positive_score": 3.0},
    "waiting-policy": {"critic_warmup_steps": 1, "value_head": "critic"},
    "brakes": {"max_mean_ratio": 1.0, "stop_kl_per_token": 1e-9},
    "deterministic": {"deterministic": True},
}  # fmt: skip


QUICK = ("critic", "grpo", "moments", "top-layers", "filters", "checkpointing", "scores", "importance")


@pytest.mark.parametrize("name", cases(CONFIGS, *QUICK))
def test_configs(name):
    assert_both_devices_agree(lambda device: trainer(tiny_llama(), device, CONFIGS[name]), DEVICE)


@pytest.mark.parametrize("kind", ["lm", "kl"])
def test_text_to_keep(kind):
    changes = KEPT | {"retain_loss": kind}
    assert_both_devices_agree(lambda device: trainer(tiny_llama(), device, changes, retain=RETAIN), DEVICE)


def test_a_model_without_a_fast_decoder():
    run = assert_both_devices_agree(lambda device: trainer(tiny_bloom(), device, {}), DEVICE)
    assert not run.rollout().metrics["generate/is_fast"]


def test_weights_in_bfloat16_and_autocast():
    """Products in bfloat16 are summed up in another order: a few units of its last place, 0.4 %."""
    for model, changes in ((tiny_llama(), {"autocast": "bfloat16"}), (tiny_llama().bfloat16(), {})):
        state = {name: x.clone() for name, x in model.state_dict().items()}

        def make(device, model=model, changes=changes, state=state):
            model.to("cpu").load_state_dict(state)
            return trainer(model, device, changes)

        assert_both_devices_agree(make, DEVICE, tolerance=2e-2)


# ---------------------------------------------------------------------- adapters


@pytest.mark.parametrize("is_tuned", [False, True])
def test_an_adapter_of_ours(is_tuned):
    def make(device):
        model = tiny_llama()
        add_lora(model, LoraConfig(("q_proj", "up_proj"), rank=2), generator=torch.Generator().manual_seed(1))
        for index, layer in enumerate(adapters(model).values() if is_tuned else ()):
            layer.lora_B.data.normal_(std=0.5, generator=torch.Generator().manual_seed(index))
        return trainer(model, device, {"microbatch": 1})

    assert_both_devices_agree(make, DEVICE)


def test_an_adapter_of_pefts():
    peft = pytest.importorskip("peft")

    def make(device):
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        return trainer(peft.get_peft_model(tiny_llama(), config), device, {})

    assert_both_devices_agree(make, DEVICE)


# ---------------------------------------------------------------------- parts of one's own


class OwnCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Embedding(23, 1, _weight=torch.linspace(-1, 1, 23).unsqueeze(-1))

    def forward(self, input_ids, attention_mask):
        return (self.values(input_ids).squeeze(-1) * attention_mask).cumsum(dim=1)


def own_loss(new, part, *, num_tokens, num_sequences):
    loss = -(new.logprobs * part.advantages).sum() / num_tokens
    return loss, {"advantage": part.advantages.sum() / num_tokens, "share": 1.0}


def own_advantage(rewards, values, mask, samples):
    returns = rewards.flip(1).cumsum(1).flip(1) * mask
    return returns - values, returns


def own_reference(generation, samples):
    return -0.5 * generation.mask.float()


def test_parts_of_ones_own():
    def make(device):
        own = {"policy_loss": own_loss, "advantage": own_advantage, "reference": own_reference}
        return trainer(tiny_llama(), device, {"microbatch": 1}, value=OwnCritic().to(device), **own)

    assert_both_devices_agree(make, DEVICE)


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_bloom])
def test_an_environment(make_model):
    rows = [{"prompt": [2, 3], "secret": 14}, {"prompt": [4, 5, 6], "secret": 15}]

    def make(device):
        config = Config(prompts_per_step=4, minibatch=2, response_length=10)
        sampler = EnvironmentSampler(Hint, turn_length=2)
        return Trainer(make_model().to(device), rows, turn_rewards, config, sampler=sampler)

    assert_both_devices_agree(make, DEVICE)


def test_responses_of_another_engine():
    changes = {"importance": "token", "old_logprobs": "recompute"}
    given = ([[2, 3, 4], [5, 6], [7], [8, 9]], [[4, 5, 6], [7, 1], [3, 2, 9, 9], [6]], [1.0, 0.0, 2.0, -1.0])
    logprobs = [[-1.0, -2.0, -3.0], [-2.5, -0.5], [-3.0, -4.0, -2.0, -3.5], [-2.0]]
    found = []
    for device in (DEVICE, torch.device("cpu")):
        run = trainer(tiny_llama(), device, changes)
        rollout = run.appraise(given_responses(run, *given, logprobs=logprobs))
        found.append(numbers_of(rollout) | run.update(rollout))
    assert_same(*found, tolerance=1e-5)


# ---------------------------------------------------------------------- what surrounds a step


def test_a_run_resumes_to_the_same_bits(tmp_path):
    changes = {"value_head": "critic", "moment_dtype": "bfloat16"}
    whole = trainer(tiny_llama(), DEVICE, changes)
    two_steps(whole)
    whole.save(tmp_path / "checkpoint")
    expected = two_steps(whole)
    resumed = Trainer.resume(tmp_path / "checkpoint", PROMPTS, length_of)
    assert resumed.device == DEVICE
    assert_same(two_steps(resumed), expected, tolerance=0)
    on_cpu = Trainer.resume(tmp_path / "checkpoint", PROMPTS, length_of, device="cpu")
    assert on_cpu.device.type == "cpu"
    assert_same(two_steps(on_cpu), expected, tolerance=2e-6)


def test_evaluation_files_and_trace(tmp_path):
    found = {}
    for device in (torch.device("cpu"), DEVICE):
        out = tmp_path / device.type
        run = trainer(tiny_llama(), device, {"eval_every_steps": 1}, eval_prompts=[[3, 4], [5]], out=out)
        with sdpa_kernel(SDPBackend.MATH):
            run.train(2, progress=False)
            trace = run.trace(run.rollout(), rows=[0, 3], is_undone=True)
            found[device.type] = run.evaluate(), json.loads(json.dumps(trace.to_dict()))
        assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    (numbers, trace), (expected, expected_trace) = found["pretend"], found["cpu"]
    assert_same(numbers, expected, 1e-6)
    assert_alike(trace, expected_trace)


def assert_alike(found, expected, place="trace"):
    """Nested lists and dicts of numbers are the same, up to rounding. Times are left out."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict | list):
        assert len(found) == len(expected), place
        for name in expected if isinstance(expected, dict) else range(len(expected)):
            if is_clock(str(name)):
                continue
            assert_alike(found[name], expected[name], f"{place}/{name}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), place
    else:
        assert found == expected, place


def test_a_dump_is_replayed(tmp_path):
    def broken(new, part, *, num_tokens, num_sequences):
        return (new.logprobs * 0).abs().sqrt().sum(), {}  # 0, with the gradient 0 · ∞

    run = trainer(tiny_llama(), DEVICE, {"stop_after_skipped_updates": 9}, policy_loss=broken, out=tmp_path)
    with pytest.warns(RuntimeWarning, match="is nan"):
        run.update(run.rollout())
    (dump,) = (tmp_path / "dumps").iterdir()
    assert ppo.replay(dump, policy_loss=broken).check == "not_finite"
