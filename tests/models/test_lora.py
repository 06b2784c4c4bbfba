"""LoRA on nn.Linear and Conv1D, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM
from transformers.pytorch_utils import Conv1D

from models.lora import (
    LoraConfig,
    LoraLinear,
    adapters,
    add_lora,
    disabled,
    merge,
    unload,
    unmerge,
)

IDS = torch.arange(3, 15)[None]


def gpt_neo() -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=16, window_size=4, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPTNeoForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


CASES = [(gpt_neo, ("q_proj", "v_proj", "c_fc")), (gpt2, ("c_attn", "c_proj"))]


def trained(make, targets, seed: int = 1):
    """A model whose adapters change its output."""
    model = make()
    add_lora(model, LoraConfig(targets, rank=3, alpha=6), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    for layer in adapters(model).values():
        layer.lora_B.data.normal_(std=0.3, generator=generator)
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_forward_equals_plain_loops(bias):
    torch.manual_seed(0)
    base = nn.Linear(4, 3, bias=bias)
    layer = LoraLinear(base, LoraConfig(("x",), rank=2, alpha=5), None)
    layer.lora_B.data.normal_()
    x = torch.randn(4)
    expected = [
        sum(base.weight[o, i].item() * x[i].item() for i in range(4))
        + (base.bias[o].item() if bias else 0.0)
        + 5
        / 2
        * sum(layer.lora_B[o, r].item() * layer.lora_A[r, i].item() * x[i].item() for r in range(2) for i in range(4))
        for o in range(3)
    ]
    torch.testing.assert_close(layer(x).double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_conv1d_is_a_transposed_linear():
    torch.manual_seed(0)
    conv, linear = Conv1D(3, 4), nn.Linear(4, 3)
    linear.weight.data.copy_(conv.weight.T)
    linear.bias.data.copy_(conv.bias)
    config = LoraConfig(("x",), rank=2)
    first, second = (LoraLinear(base, config, torch.Generator().manual_seed(3)) for base in (conv, linear))
    first.lora_B.data.fill_(0.5)
    second.lora_B.data.fill_(0.5)
    x = torch.randn(5, 4)
    torch.testing.assert_close(first(x), second(x))
    torch.testing.assert_close(first.weight.T, second.weight)


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_new_adapters_change_nothing(make, targets):
    plain, model = make()(IDS).logits, make()
    paths = add_lora(model, LoraConfig(targets))
    assert len(paths) == len(adapters(model)) >= 4
    assert torch.equal(model(IDS).logits, plain)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{path}.lora_{part}" for path in paths for part in "AB"}


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_merged_equals_unmerged(make, targets):
    plain, model = make(), trained(make, targets)
    adapted = model(IDS).logits
    assert (adapted - plain(IDS).logits).abs().max() > 0.01
    merge(model)
    merge(model)  # the second call does nothing
    torch.testing.assert_close(model(IDS).logits, adapted, atol=1e-5, rtol=1e-4)
    unmerge(model)
    assert torch.equal(model(IDS).logits, adapted)


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_weight_is_the_effective_weight(make, targets):
    model = trained(make, targets)
    for layer in adapters(model).values():
        x = torch.randn(2, layer.in_features)
        weight = layer.weight.T if layer.is_transposed else layer.weight
        torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.bias), atol=1e-5, rtol=1e-4)


def test_disabled_is_the_base_model_and_comes_back_after_an_error():
    plain, model = gpt_neo()(IDS).logits, trained(gpt_neo, ("q_proj",))
    adapted = model(IDS).logits
    with disabled(model):
        assert torch.equal(model(IDS).logits, plain)
        with disabled(model):
            pass
        assert torch.equal(model(IDS).logits, plain)
    with pytest.raises(RuntimeError, match="stop"), disabled(model):
        raise RuntimeError("stop")
    assert torch.equal(model(IDS).logits, adapted)
    merge(model)
    with pytest.raises(ValueError, match="call unmerge"), disabled(model):
        pass


@pytest.mark.parametrize("keep", [True, False])
def test_unload_gives_a_plain_model(keep):
    plain, model = gpt2(), trained(gpt2, ("c_attn",))
    adapted = model(IDS).logits
    merge(model)
    unload(model, keep=keep)
    assert not adapters(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(IDS).logits, adapted if keep else plain(IDS).logits, atol=1e-5, rtol=1e-4)


def test_training_moves_the_adapters_only():
    model = trained(gpt_neo, ("q_proj", "v_proj"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_dropout_acts_in_training_only():
    model = gpt_neo()
    add_lora(model, LoraConfig(("q_proj",), dropout=0.5))
    for layer in adapters(model).values():
        layer.lora_B.data.fill_(1.0)
    layer, x = next(iter(adapters(model).values())), torch.ones(1, 16)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_targets_by_name_and_by_expression():
    by_name = LoraConfig(("c_proj",))
    assert by_name.matches("h.0.mlp.c_proj")
    assert not by_name.matches("h.0.mlp.xc_proj")
    by_expression = LoraConfig(r".*\.0\..*c_proj")
    assert by_expression.matches("h.0.mlp.c_proj")
    assert not by_expression.matches("h.1.mlp.c_proj")


def test_target_errors_name_the_layers_of_the_model():
    with pytest.raises(ValueError, match=r"matches no module; linear layers: c_fc, c_proj, k_proj, lm_head"):
        add_lora(gpt_neo(), LoraConfig(("query",)))
    with pytest.raises(ValueError, match=r"matches transformer.h.0.ln_1, a LayerNorm"):
        add_lora(gpt_neo(), LoraConfig(("ln_1",)))
    with pytest.raises(ValueError, match="already has LoRA adapters"):
        add_lora(trained(gpt_neo, ("q_proj",)), LoraConfig(("q_proj",)))


@pytest.mark.parametrize("make", [gpt_neo, gpt2])
def test_a_tied_output_layer_is_refused_and_an_untied_one_is_not(make):
    """Merging its adapter would change the input embedding too, so the merged model would act differently."""
    model = make()
    with pytest.raises(ValueError, match=r"matches lm_head, whose weight is that of transformer.wte too"):
        add_lora(model, LoraConfig(("lm_head",)))
    assert not adapters(model)
    assert all(p.requires_grad for p in model.parameters())
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    add_lora(model, LoraConfig(("lm_head",)), generator=torch.Generator().manual_seed(1))
    model.lm_head.lora_B.data.normal_(generator=torch.Generator().manual_seed(2))
    adapted = model(IDS).logits
    unload(model, keep=True)
    torch.testing.assert_close(model(IDS).logits, adapted, atol=1e-5, rtol=1e-4)


def test_a_layer_used_in_two_places_is_refused():
    """The adapter would be added in one of the two places only."""
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"first": layer, "second": layer})
    with pytest.raises(ValueError, match=r"matches first, whose weight is that of second too"):
        add_lora(model, LoraConfig(("first", "second")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"alpha": 0.0}, "alpha=0.0 must be finite and above 0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"targets": ()}, "targets is empty"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**({"targets": ("q_proj",)} | values))
