"""Sampling on the pretend device gives what it gives on the CPU: all decoders, the generic engine, drafts and turns."""

import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppo import Sampling, Turns, generate
from ppo.generation import linear
from ppo.generation.decoders import bind
from ppo.generation.speculative import Drafts
from tests.accelerator.device import DEVICE
from tests.accelerator.runs import cases
from tests.ppo.generation.test_decoders import FAMILIES
from tests.ppo.generation.test_models import ARCHITECTURES, PROMPTS, build, responses
from tests.ppo.generation.test_turns import ENDS, answer_to


def fast():
    return build(FAMILIES["llama"]())


def generic():
    return build(ARCHITECTURES["bloom"]())


SAMPLING = Sampling(response_length=10, num_samples=2, eos_ids=(4, 9), min_response_length=2)


def on_both(model, sampling=SAMPLING, **options):
    """The same call on the CPU and on the device."""
    found = []
    for device in ("cpu", DEVICE):
        model.to(device)
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model's own forward, which some of these take
            found.append(
                generate(model, PROMPTS, sampling, seed=5, slots=3, value_fn=lambda hidden: hidden.mean(-1), **options)
            )
    return found


def assert_same(there, expected, tolerance=1e-5):
    assert there.tokens.device == DEVICE
    for name in ("tokens", "mask", "action_mask", "prompt_ids", "is_ended"):
        assert torch.equal(getattr(there, name).cpu(), getattr(expected, name)), name
    for name in ("logprobs", "entropy", "values"):
        torch.testing.assert_close(
            getattr(there, name).cpu(), getattr(expected, name), rtol=tolerance, atol=tolerance, msg=name
        )
    for name in ("generate/is_fast", "generate/decode_steps", "generate/padding_waste"):
        assert there.metrics[name] == expected.metrics[name]


@pytest.mark.parametrize("name", cases(FAMILIES, "gpt2", "gpt-neo", "gpt-neox", "opt", "llama", "mistral", "qwen3"))
def test_fast_decoders(name):
    expected, there = on_both(build(FAMILIES[name]()))
    assert there.metrics["generate/is_fast"]
    assert_same(there, expected)


@pytest.mark.parametrize("name", cases(ARCHITECTURES, "bloom", "gemma2", "mamba", "mixtral", "gptj"))
def test_models_own_forward(name):
    expected, there = on_both(build(ARCHITECTURES[name]()))
    assert not there.metrics["generate/is_fast"]
    assert_same(there, expected)


@pytest.mark.parametrize("make", [fast, generic])
@pytest.mark.parametrize(
    "knobs",
    [{"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.7, "temperature": 1.5}],
    ids=str,
)
def test_filters(make, knobs):
    expected, there = on_both(make(), Sampling(response_length=10, num_samples=2, **knobs))
    assert_same(there, expected)


def test_weights_in_bfloat16():
    expected, there = on_both(fast().bfloat16(), Sampling(response_length=6, temperature=0.0))
    assert_same(there, expected, tolerance=5e-2)


def test_drafts(monkeypatch):
    monkeypatch.setattr(Drafts, "pays", True)
    model = fast()
    plain, _ = on_both(model)
    drafts = [[*row[: 1 + index % 7], 2, 3] for index, row in enumerate(responses(plain))]
    expected, there = on_both(model, drafts=drafts)
    assert there.metrics["generate/draft_acceptance"] == expected.metrics["generate/draft_acceptance"] > 0.3
    assert_same(there, expected)
    assert torch.equal(there.tokens.cpu(), plain.tokens)


@pytest.mark.parametrize("make", [fast, generic])
def test_turns(make):
    turns = Turns(lambda request, ids: answer_to(ids), end_ids=ENDS, turn_length=3)
    expected, there = on_both(make(), Sampling(response_length=14, num_samples=2), turns=turns)
    assert not expected.action_mask[expected.mask].all()
    assert_same(there, expected)


def test_nothing_of_the_cpu_alone_is_reached(monkeypatch):
    """Weights are packed for oneDNN, and sorted by numpy, on the CPU only."""
    monkeypatch.setattr(linear, "_FLOAT32_MIN_WEIGHTS", 1)
    model = fast()
    assert any(block.qkv.is_packed for block in bind(model, rows=8, length=32).blocks)
    network = bind(model.to(DEVICE), rows=8, length=32)
    assert not any(part.is_packed for block in network.blocks for part in (block.qkv, block.up, block.down))
    assert not network.output.is_packed
    monkeypatch.setattr("numpy.sort", None)
    generate(model, PROMPTS, Sampling(response_length=4, top_p=0.8))
