"""The static step: it samples what the ordinary engine samples, by a graph whose shapes never change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import transformers as hf
from torch._dynamo.testing import CompileCounterWithBackend

from ppo import Config, Sampling, Trainer, generate
from ppo.generation import api
from ppo.generation.sampling import check, draw, draw_blindly
from ppo.generation.static import compiled_step, keep_in_place, static_step, static_width, tensors_of
from ppo.lm.distribution import filter_logits
from tests.fakes import tiny_bloom, tiny_gpt2
from tests.ppo.generation.test_decoders import FAMILIES
from tests.ppo.generation.test_models import PROMPTS, SMALL, build

RAGGED = [*PROMPTS, [2] * 30, [9, 9]]
SAMPLING = Sampling(response_length=12, num_samples=5, temperature=1.5, eos_ids=(3, 5, 8, 13))
LONG = SMALL | {"max_position_embeddings": 192}
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8},
    "both": {"top_k": 20, "top_p": 0.7},
    "EOS held back": {"min_response_length": 6},
    "no EOS": {"eos_ids": ()},
}


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(api, "compiled_step", lambda device_type: static_step)


@pytest.fixture
def graphs(monkeypatch):
    """Compile the step, but let torch run the graph itself. It counts graphs, and a graph break is an error."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(static_step, backend=counter, fullgraph=True, dynamic=False)
    monkeypatch.setattr(api, "compiled_step", lambda device_type: step)
    yield counter
    torch.compiler.reset()


def assert_same_samples(model, prompts, sampling: Sampling, **options) -> None:
    def run(**more):
        return generate(model, prompts, sampling, seed=2, value_fn=lambda hidden: hidden.sum(-1), **options, **more)

    expected, actual = run(), run(compiled=True)
    assert actual.metrics["generate/is_fast"] == 1
    for name in ("tokens", "mask", "is_ended"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))
    for name in ("logprobs", "entropy", "values"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_those_of_the_ordinary_step(uncompiled, name: str, slots: int):
    """Prompts have many lengths, rows end early and are filled again, and every family is there, also with windows."""
    assert_same_samples(build(FAMILIES[name]()), RAGGED, SAMPLING, slots=slots)


@pytest.mark.parametrize("change", SAMPLINGS.values(), ids=SAMPLINGS)
def test_every_way_to_draw(uncompiled, change):
    assert_same_samples(build(FAMILIES["llama"]()), RAGGED, replace(SAMPLING, **change), slots=7)


def test_with_drafts(uncompiled):
    model = build(FAMILIES["gpt-neo"]())
    guesses = [row.tolist() for row in generate(model, RAGGED, SAMPLING, seed=2).tokens]
    assert_same_samples(model, RAGGED, SAMPLING, slots=4, drafts=guesses)


@pytest.mark.parametrize("window", [None, 7, 70])
def test_a_cache_that_widens(uncompiled, window: int | None):
    config = hf.LlamaConfig(**LONG) if window is None else hf.MistralConfig(**LONG, sliding_window=window)
    sampling = Sampling(response_length=100, temperature=1.5, eos_ids=(3,))
    assert_same_samples(build(config), [*RAGGED, [2, 7] * 40], sampling, slots=4)


def test_widths_are_few_and_wide_enough():
    widths = [static_width(columns) for columns in range(1, 2100)]
    assert sorted(set(widths)) == [64, 128, 256, 512, 1024, 1536, 2048, 2560]
    assert all(width >= columns for columns, width in enumerate(widths, start=1))


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox", "opt-350m", "llama", "mistral", "qwen3"])
def test_it_is_one_graph_for_all_rollouts(graphs, name: str):
    """For other weights, prompts and lengths nothing is compiled again until the cache needs more columns."""
    model = build(FAMILIES[name]())
    assert_same_samples(model, RAGGED, SAMPLING, slots=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert_same_samples(model, [[9] * 20, *PROMPTS], replace(SAMPLING, response_length=7), slots=4)
    assert graphs.frame_count == 1


def test_there_is_one_graph_for_each_width_of_the_cache(graphs):
    sampling = Sampling(response_length=100, temperature=1.5, eos_ids=(3,), top_p=0.9, min_response_length=70)
    for _ in range(2):
        assert_same_samples(build(hf.LlamaConfig(**LONG)), RAGGED, sampling, slots=3)
        assert graphs.frame_count == 3  # 64, 128, 256 columns


@pytest.mark.parametrize("std", [0.1, 5.0])
def test_a_nucleus_in_a_large_vocabulary(std: float):
    """The ordinary draw checks whether its first guess was large enough. The graph sorts everything instead."""
    logits = std * torch.randn(6, 5000)
    compiled = torch.compile(filter_logits, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(compiled(logits, 1.0, 0, 0.9), filter_logits(logits, 1.0, 0, 0.9))


def test_many_shapes_are_compiled_before_torch_gives_up(monkeypatch):
    """torch stops after 8 shapes by default. torch 2.8 has no argument for it."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda: torch._dynamo.config.recompile_limit)
    assert compiled_step.__wrapped__("cpu")() == 64
    assert torch._dynamo.config.recompile_limit == 8


def test_large_tensors_are_marked_as_keeping_their_address(monkeypatch):
    """CUDA graphs need this mark, and the CPU can test it: only inputs that are new in every step are unmarked."""
    torch.compiler.reset()
    unmarked = []

    def backend(graph, example_inputs):
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        unmarked.append(
            [
                tuple(node.meta["example_value"].shape)
                for node in inputs
                if node.meta["tensor_dict"].get("_dynamo_static_input_type") != "unguarded"
            ]
        )
        return graph.forward

    step = torch.compile(static_step, backend=backend, fullgraph=True, dynamic=False)

    def marked(network, layers, *inputs):
        keep_in_place([*tensors_of(network), *layers])
        return step(network, layers, *inputs)

    monkeypatch.setattr(api, "compiled_step", lambda device_type: marked)
    for _ in range(2):
        model = build(FAMILIES["llama"]())
        assert_same_samples(model, RAGGED, replace(SAMPLING, min_response_length=2), slots=6)
    assert unmarked == [[(6,), (6,), (6,), (6,)]]


def test_a_policy_can_be_trained_with_the_static_step(graphs):
    def rollouts(is_compiled: bool):
        config = Config(
            prompts_per_step=4, minibatch=4, epochs=1, response_length=6, learning_rate=1e-3,
            compiled_rollout=is_compiled,
        )  # fmt: skip
        reward = lambda samples: [float(len(s.ids)) for s in samples]  # noqa: E731
        trainer = Trainer(tiny_gpt2(), prompts=[[2, 3], [4], [5, 6, 7], [8]], reward=reward, config=config)
        for _ in range(3):
            rollout = trainer.rollout()
            trainer.update(rollout)
            yield rollout.generation

    for ordinary, compiled in zip(rollouts(False), rollouts(True), strict=True):
        assert torch.equal(compiled.tokens, ordinary.tokens)
        torch.testing.assert_close(compiled.logprobs, ordinary.logprobs, rtol=1e-4, atol=1e-4)
    assert graphs.frame_count == 1


def test_broken_logits_are_an_error(monkeypatch):
    """The first token comes from prefill, so only the step's own totals show a failure in later tokens."""

    def broken(*inputs):
        hidden, drawn, total = static_step(*inputs)
        return hidden, drawn, total * math.nan

    monkeypatch.setattr(api, "compiled_step", lambda device_type: broken)
    with pytest.raises(ValueError, match="NaN"):
        generate(tiny_gpt2(), [[2, 3]], Sampling(response_length=4, eos_ids=()), compiled=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_blind_draws_from_broken_rows_stay_in_bounds(value: float, temperature: float):
    logits, uniforms = torch.randn(3, 300), torch.tensor([0.2, 0.999, 0.7])
    logits[1] = value
    sampling = Sampling(temperature=temperature)
    drawn, total = draw_blindly(logits.clone(), uniforms, sampling)
    assert ((drawn.tokens >= 0) & (drawn.tokens < 384)).all()  # whole blocks of 128
    sound = torch.tensor([0, 2])
    assert torch.equal(drawn.tokens[sound], draw(logits[sound], uniforms[sound], sampling).tokens)
    check(total[sound])
    with pytest.raises(ValueError, match="NaN"):
        check(total)


def test_compiled_with_another_engine_is_an_error_or_a_warning():
    with pytest.raises(ValueError, match="engine='auto'"):
        generate(tiny_gpt2(), [[2]], Sampling(response_length=2), engine="hf", compiled=True)
    with pytest.warns(RuntimeWarning, match="BloomForCausalLM is sampled through its own forward.*compiled=True"):
        generate(tiny_bloom(), [[2]], Sampling(response_length=2), compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-neo", "llama"])
def test_the_step_compiled_by_inductor_gives_the_same_samples(name: str):
    torch.compiler.reset()
    model = build(FAMILIES[name]())
    for factor in (1.0, 0.9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        assert_same_samples(model, RAGGED, SAMPLING, slots=4)
