"""The fast decoders: every family equals ``model.generate``, and a model that they cannot decode falls back, with a
reason.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from models import lora
from ppo import Sampling, generate
from ppo.generation.decoders import Unsupported, bind
from ppo.generation.decoders.bind import _PROVEN
from ppo.lm.backbone import blocks
from tests.ppo.generation.test_models import PROMPTS, SMALL, VOCAB, build, greedy_with_transformers, responses

GPT = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64, "eos_token_id": None}
NEO = {
    "vocab_size": VOCAB, "hidden_size": 24, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 2]], "window_size": 5, "eos_token_id": None,
}  # fmt: skip
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
OPT = {
    "vocab_size": VOCAB, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip

FAMILIES = {
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gpt2-scaled-by-layer": lambda: hf.GPT2Config(**GPT, scale_attn_by_inverse_layer_idx=True, n_inner=20),
    "gpt2-unscaled": lambda: hf.GPT2Config(**GPT, scale_attn_weights=False, activation_function="relu"),
    "gpt-neo": lambda: hf.GPTNeoConfig(**NEO),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**NEOX, rotary_pct=0.5),
    "gpt-neox-sequential": lambda: hf.GPTNeoXConfig(
        **NEOX, rotary_pct=1.0, use_parallel_residual=False, attention_bias=False
    ),
    "opt": lambda: hf.OPTConfig(**OPT, word_embed_proj_dim=16),
    "opt-350m": lambda: hf.OPTConfig(**OPT, word_embed_proj_dim=8, do_layer_norm_before=False),
    "opt-without-biases": lambda: hf.OPTConfig(
        **OPT, word_embed_proj_dim=16, enable_bias=False, layer_norm_elementwise_affine=False
    ),
    "llama": lambda: hf.LlamaConfig(**SMALL),
    "llama-biases": lambda: hf.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-wide-heads": lambda: hf.LlamaConfig(**SMALL | {"num_key_value_heads": 1}, head_dim=6, hidden_act="gelu"),
    "llama3-rope": lambda: hf.LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    ),
    "mistral": lambda: hf.MistralConfig(**SMALL, sliding_window=4),
    "qwen2": lambda: hf.Qwen2Config(**SMALL),
    "qwen2-sliding": lambda: hf.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**SMALL, head_dim=8),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    """A fallback warns. So a family that falls back, and would test the wrong engine, fails its test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*sampled through its own forward.*")
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_equals_transformers(name: str):
    model = build(FAMILIES[name]())
    endless = [greedy_with_transformers(model, prompt, 16, ()) for prompt in PROMPTS]
    generation = generate(model, PROMPTS, Sampling(response_length=16, temperature=0.0))
    assert generation.metrics["generate/is_fast"] == 1
    assert responses(generation) == endless

    eos = endless[2][3]
    generation = generate(model, PROMPTS, Sampling(response_length=16, temperature=0.0, eos_ids=(eos,)), slots=3)
    assert responses(generation) == [greedy_with_transformers(model, prompt, 16, (eos,)) for prompt in PROMPTS]
    assert generation.is_ended[2]


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_and_statistics_equal_the_generic_engine(name: str):
    """There are more requests than slots, rows end at different times, and a prompt has several samples."""
    model = build(FAMILIES[name]())
    sampling = Sampling(response_length=12, num_samples=5, temperature=1.5, eos_ids=(3, 5, 8, 13))
    prompts = [*PROMPTS, [2] * 30, [9, 9]]

    def run(engine, slots):
        return generate(
            model, prompts, sampling, seed=2, slots=slots, engine=engine, value_fn=lambda hidden: hidden.sum(-1)
        )

    expected = run("hf", 64)
    assert expected.metrics["generate/is_fast"] == 0
    assert expected.lengths.unique().numel() > 3
    for slots in (1, 4, 11, 64):
        actual = run("auto", slots)
        assert actual.metrics["generate/is_fast"] == 1
        assert torch.equal(actual.tokens, expected.tokens)
        assert torch.equal(actual.mask, expected.mask)
        assert torch.equal(actual.is_ended, expected.is_ended)
        for name in ("logprobs", "entropy", "values"):
            torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox", "opt-350m", "llama", "qwen3"])
def test_bfloat16_is_as_close_to_float32_as_the_models_own_bfloat16(name: str):
    model = build(FAMILIES[name]()).float()
    half = copy.deepcopy(model).to(torch.bfloat16)
    sampling = Sampling(response_length=1, eos_ids=())

    def logprobs(model, engine):
        generation = generate(model, PROMPTS * 8, sampling, engine=engine)
        return generation.tokens, generation.logprobs, generation.metrics

    exact_tokens, exact, _ = logprobs(model, "hf")
    own_tokens, own, _ = logprobs(half, "hf")
    fast_tokens, fast, metrics = logprobs(half, "auto")
    assert metrics["generate/is_fast"] == 1
    own_error = (own - exact)[own_tokens == exact_tokens].abs().mean()
    fast_error = (fast - exact)[fast_tokens == exact_tokens].abs().mean()
    assert fast_error <= 2 * own_error + 1e-3


def test_double_precision():
    model = build(FAMILIES["llama"]()).double()
    generation = generate(model, PROMPTS, Sampling(response_length=6, temperature=0.0))
    assert generation.metrics["generate/is_fast"] == 1
    assert responses(generation) == [greedy_with_transformers(model, prompt, 6, ()) for prompt in PROMPTS]


def test_the_last_position_of_the_context_is_used():
    model = build(FAMILIES["gpt2"]())
    generation = generate(model, [[4] * 50], Sampling(response_length=14, temperature=0.0))
    assert generation.metrics["generate/is_fast"] == 1
    assert responses(generation) == [greedy_with_transformers(model, [4] * 50, 14, ())]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_librarys_adapters_are_decoded_fast(name: str, dtype: torch.dtype):
    """Their weights are merged anew in every call. When they are switched off, the base model samples."""
    model = build(FAMILIES[name]()).to(dtype)
    sampling = Sampling(response_length=1, temperature=0.0)
    base = generate(model, PROMPTS, sampling)
    targets = ("c_attn", "c_fc") if name == "gpt2" else ("q_proj", "v_proj", "up_proj", "o_proj")
    torch.manual_seed(0)
    lora.add_lora(model, lora.LoraConfig(targets, rank=2))
    with torch.no_grad():
        for layer in lora.adapters(model).values():
            layer.lora_B.normal_(std=0.3)
    fast, slow = generate(model, PROMPTS, sampling), generate(model, PROMPTS, sampling, engine="hf")
    assert fast.metrics["generate/is_fast"] == 1
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=tolerance, atol=tolerance)
    assert (fast.logprobs - base.logprobs).abs().max() > 0.1
    with lora.disabled(model):
        assert torch.equal(generate(model, PROMPTS, sampling).logprobs, base.logprobs)


class Doubled(nn.Linear):
    """A linear layer that computes more than its weight says, as an adapter or a quantised layer does."""

    def forward(self, x):
        return 2 * super().forward(x)


def fall_back(model) -> str:
    """The reason that the warning gives. The result must be the model's own."""
    with pytest.warns(RuntimeWarning, match="sampled through its own forward") as caught:
        generation = generate(model, PROMPTS, Sampling(response_length=6, temperature=0.0))
    assert len(caught) == 1
    assert generation.metrics["generate/is_fast"] == 0
    assert responses(generation) == [greedy_with_transformers(model, prompt, 6, ()) for prompt in PROMPTS]
    return str(caught[0].message)


def test_a_layer_that_is_not_plain_falls_back():
    model = build(FAMILIES["llama"]())
    model.model.layers[1].mlp.up_proj.__class__ = Doubled
    assert "Doubled" in fall_back(model)


def test_whatever_acts_on_a_module_falls_back():
    """Also where it changes nothing now: a hook may act on later tokens, a factor may change after the proof."""
    model = build(FAMILIES["llama"]())
    layer = model.model.layers[1].mlp
    handle = layer.register_forward_hook(lambda module, inputs, output: None)
    assert "model.layers.1.mlp has a forward hook" in fall_back(model)
    handle.remove()
    own = layer.forward
    layer.forward = lambda x: own(x)
    assert "model.layers.1.mlp has a forward of its own" in fall_back(model)
    layer.forward = own  # the class's, as transformers 5.0 leaves it
    assert bind(model, rows=2, length=20) is not None
    torch.nn.utils.parametrizations.orthogonal(model.model.layers[0].self_attn.o_proj)
    assert "o_proj has a parametrised weight" in fall_back(model)


def test_a_hook_for_all_modules_falls_back():
    handle = register_module_forward_hook(lambda module, inputs, output: None)
    try:
        assert "a forward hook, which torch calls for all modules" in fall_back(build(FAMILIES["llama"]()))
    finally:
        handle.remove()


def test_hooks_that_only_look_on_leave_the_decoder_as_it_is():
    """Whoever has once asked a model of transformers for its hidden states has left hooks in it."""
    model = build(FAMILIES["llama"]())
    model.enable_input_require_grads()
    model(torch.tensor([PROMPTS[0]]), output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.modules())
    assert bind(model, rows=2, length=20) is not None


@pytest.mark.parametrize("name", ["mine", "sdpa"])
@pytest.mark.parametrize("interface", [hf.AttentionInterface, hf.AttentionMaskInterface])
def test_attention_of_ones_own_falls_back(monkeypatch, name, interface):
    """It may be another one only beyond the tokens that the decoder is tried with."""
    own = hf.AttentionMaskInterface()["sdpa"] if interface is hf.AttentionMaskInterface else sdpa_attention_forward
    monkeypatch.setitem(interface._global_mapping, name, lambda *arguments, **options: own(*arguments, **options))
    if name == "mine" and interface is hf.AttentionMaskInterface:
        monkeypatch.setitem(hf.AttentionInterface._global_mapping, name, sdpa_attention_forward)
    model = build(FAMILIES["llama"]())
    model.config._attn_implementation = name
    if name == "mine" and interface is hf.AttentionInterface:
        monkeypatch.setitem(hf.AttentionMaskInterface._global_mapping, name, hf.AttentionMaskInterface()["sdpa"])
    assert f"its attention {name!r} is a function of your own" in fall_back(model)


def test_a_block_that_stands_in_two_places_is_decoded():
    """Its two places share a place in the model's own cache, so the proof asks for none."""
    model = build(FAMILIES["llama"]())
    model.model.layers[2] = model.model.layers[0]
    assert bind(model, rows=2, length=20) is not None


@pytest.mark.parametrize(
    "make", [torch.nn.utils.weight_norm, lambda layer: prune.random_unstructured(layer, "weight", 0.5)]
)
def test_a_weight_that_a_hook_makes_is_the_one_of_now(make):
    """The attribute ``weight`` is that of the last forward; after an update it would be one step behind."""
    model = build(FAMILIES["llama"]())
    make(model.model.layers[0].mlp.up_proj)
    fall_back(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    assert "up_proj has a forward hook" in fall_back(model)


class Wrapped(nn.Module):
    """The same computation in another module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


PARTS = {
    "gpt2": ("attn", "mlp"), "gpt-neo": ("attn", "mlp"), "gpt-neox": ("attention", "mlp"), "opt": ("self_attn", "fc1"),
    "llama": ("self_attn", "mlp"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_replaced_part_falls_back(name):
    """Attention, MLP or a whole block of a class that the decoder does not know."""
    for part in (*PARTS[name], ""):
        model = build(FAMILIES[name]())
        layers = blocks(model)
        if part:
            setattr(layers[-1], part, Wrapped(getattr(layers[-1], part)))
        else:
            parent = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and m[-1] is layers[-1])
            parent[len(parent) - 1] = Wrapped(layers[-1])
        assert "Wrapped" in fall_back(model)


def test_a_plain_layer_in_place_of_a_part_falls_back():
    """Its class is known, but it has none of the part's weights."""
    model = build(FAMILIES["llama"]())
    model.model.layers[1].mlp = nn.Linear(*[model.config.hidden_size] * 2)
    assert "gate_proj" in fall_back(model)


def test_a_replaced_forward_of_a_class_falls_back(monkeypatch):
    """As kernels that patch transformers' classes do."""
    model = build(FAMILIES["llama"]())
    kind = type(model.model.layers[0].mlp)
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 1.1 * own(self, x))
    assert "LlamaMLP" in fall_back(model)


def test_a_proof_holds_for_the_weights_of_now():
    """With an MLP that gives 0 nothing shows that its activation was replaced; later it does."""
    model = build(FAMILIES["llama"]())
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.Tanh()
        layer.mlp.down_proj.weight.data.zero_()
    assert generate(model, PROMPTS, Sampling(response_length=2)).metrics["generate/is_fast"] == 1
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.normal_()
    assert "relative error" in fall_back(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert "all 0" in fall_back(model)


def test_the_memo_of_proofs_keeps_no_model_alive():
    model = build(hf.MistralConfig(**SMALL, sliding_window=12))
    generate(model, PROMPTS, Sampling(response_length=16))  # longer than the window: its proof is remembered
    assert model in _PROVEN
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("engine", ["auto", "hf"])
def test_sampled_tensors_can_be_trained_on(engine):
    """Sampling runs in inference mode, but its results are ordinary tensors."""
    model = build(FAMILIES["gpt2"]())
    head = torch.nn.Linear(model.config.n_embd, 1)
    generation = generate(
        model, PROMPTS, Sampling(response_length=3), engine=engine, value_fn=lambda hidden: head(hidden).squeeze(-1)
    )
    weight = torch.ones(1, requires_grad=True)
    for name in ("logprobs", "entropy", "values"):
        assert not getattr(generation, name).requires_grad
        (getattr(generation, name) * weight).sum().backward()
    assert weight.grad is not None
    assert not generation.tokens.is_inference()


def test_mixed_precision_is_refused():
    model = build(FAMILIES["opt"]())
    model.model.decoder.final_layer_norm.double()
    with pytest.raises(Unsupported, match="differ in precision"):
        bind(model, rows=4, length=20)


def test_rotary_embeddings_that_depend_on_the_sequence_fall_back():
    config = hf.LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert "dynamic" in fall_back(build(config))


def test_a_subclass_goes_through_its_own_forward_silently():
    class Louder(hf.GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = -output.logits
            return output

    model = build(FAMILIES["gpt2"]())
    model.__class__ = Louder
    generation = generate(model, PROMPTS, Sampling(response_length=6, temperature=0.0))
    assert generation.metrics["generate/is_fast"] == 0
    assert responses(generation) == [greedy_with_transformers(model, prompt, 6, ()) for prompt in PROMPTS]
