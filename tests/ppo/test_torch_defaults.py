"""A process may have another default dtype or device for new tensors. A run must not notice it."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from ppo import Config, Sampling, Trainer, generate

SIZE = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "fast": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, max_position_embeddings=64)),
    "generic": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=61, hidden_size=16, n_layer=2, n_head=4)),
}
VARIANTS = {
    "defaults": {},
    "filters": {"top_p": 0.9, "top_k": 20},
    "groups": {"advantage": "grpo", "samples_per_prompt": 2, "minibatch": 4},
    "mlp": {"value_head": "mlp"},
    "critic": {"value_head": "critic", "scale_scores": True, "whiten_rewards": True},
    "keep": {"retain_coef": 1.0, "retain_tokens": 8, "moment_dtype": "bfloat16"},
}
RETAIN = [[1, 2, 3, 4, 5, 6, 7, 8]] * 8
PROMPTS = [[1, 2], [3]]


@pytest.fixture
def default_dtype():
    """Sets it; it is float32 again after the test."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def odd(samples):
    return [float(sum(sample.ids) % 5) for sample in samples]


def trained(model, options):
    torch.manual_seed(0)
    retain = RETAIN if "retain_coef" in options else None
    config = Config(**{"prompts_per_step": 4, "minibatch": 2, "response_length": 6, "epochs": 2} | options)
    trainer = Trainer(model, PROMPTS, odd, config, retain=retain)
    for _ in range(2):
        trainer.update(trainer.rollout())
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_run_does_not_notice_the_default_dtype(default_dtype, make, variant, dtype):
    torch.manual_seed(0)
    usual, other = make(), make()
    other.load_state_dict(usual.state_dict())
    expected = trained(usual, VARIANTS[variant])
    default_dtype(dtype)
    for name, weight in trained(other, VARIANTS[variant]).items():
        assert torch.equal(weight, expected[name]), name


@pytest.fixture
def default_device():
    """Sets it; it is the CPU again after the test."""
    yield torch.set_default_device
    torch.set_default_device(None)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_run_does_not_notice_the_default_device(default_device, make, variant):
    """Tensors on "meta" hold no numbers, so one that is made there is noticed."""
    torch.manual_seed(0)
    usual, other = make(), make()
    other.load_state_dict(usual.state_dict())
    expected = trained(usual, VARIANTS[variant])
    default_device("meta")
    for name, weight in trained(other, VARIANTS[variant]).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_log_probs_stay_in_float32(default_dtype, make):
    model = make()
    default_dtype(torch.float16)
    generation = generate(model, PROMPTS, Sampling(response_length=4))
    assert generation.logprobs.dtype == generation.entropy.dtype == torch.float32
