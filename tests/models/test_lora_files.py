"""Adapters in PEFT's file format: the round trip, what the file's tensors decide, and every error."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.lora import LoraConfig, adapters, add_lora, load_adapter, save_adapter
from tests.fakes import tiny_gpt2
from tests.models.test_lora import CASES, IDS, gpt2, gpt_neo, trained


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_file_round_trip_in_pefts_format(tmp_path, make, targets):
    model, config = trained(make, targets), LoraConfig(targets, rank=3, alpha=6)
    save_adapter(model, tmp_path, config, base_model="somebody/base")
    fresh = make()
    assert load_adapter(fresh, tmp_path) == config
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 6.0,
        "target_modules": list(targets),
    }
    assert expected.items() <= written.items()
    assert written["fan_in_fan_out"] is (make is gpt2)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = {
        gpt_neo: "base_model.model.transformer.h.0.attn.attention.q_proj",
        gpt2: "base_model.model.transformer.h.0.attn.c_attn",
    }
    assert tensors[f"{key[make]}.lora_A.weight"].shape == (3, 16)
    assert tensors[f"{key[make]}.lora_B.weight"].shape == ((16, 3) if make is gpt_neo else (48, 3))


@pytest.mark.parametrize(
    "narrowing", [{"layers_to_transform": 0}, {"exclude_modules": ["transformer.h.1.attn.c_attn"]}]
)
def test_an_adapter_of_fewer_layers_than_its_targets_name(tmp_path, narrowing):
    """PEFT can exclude layers by options of its own. The names of the file's tensors tell which layers it adapted."""
    model, path = trained(gpt2, r"transformer\.h\.0\.attn\.c_attn"), "transformer.h.0.attn.c_attn"
    save_adapter(model, tmp_path, LoraConfig(("c_attn",), rank=3, alpha=6))
    with pytest.raises(ValueError, match=r"does not fit this model: .*h.1.attn.c_attn.lora_A"):
        load_adapter(gpt2(), tmp_path)
    description = tmp_path / "adapter_config.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | narrowing))
    fresh = gpt2()
    config = load_adapter(fresh, tmp_path)
    assert config == LoraConfig((path,), rank=3, alpha=6)
    assert list(adapters(fresh)) == [path]
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    save_adapter(fresh, tmp_path / "again", config)
    load_adapter(again := gpt2(), tmp_path / "again")
    assert list(adapters(again)) == [path]


def test_file_errors_leave_no_adapter(tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config.json is missing"):
        load_adapter(gpt_neo(), tmp_path)
    with pytest.raises(ValueError, match="no LoRA adapters to save"):
        save_adapter(gpt_neo(), tmp_path, LoraConfig(("q_proj",)))
    config = LoraConfig(("q_proj",), rank=3)
    save_adapter(trained(gpt_neo, ("q_proj",)), tmp_path, config)
    weights, description = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, values = load_file(weights), json.loads(description.read_text())
    key = sorted(tensors)[0]
    for wrong in ({k: v for k, v in tensors.items() if k != key}, tensors | {key: torch.zeros(1, 1)}):
        save_file(wrong, weights)
        model = gpt_neo()
        with pytest.raises(ValueError, match=r"does not fit this model: .*lora_A"):
            load_adapter(model, tmp_path)
        assert not adapters(model)
    weights.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors cannot be read"):
        load_adapter(gpt_neo(), tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is missing"):
        load_adapter(gpt_neo(), tmp_path)
    wrong_values = [
        ({"use_dora": True}, "uses use_dora"), ({"r": "x"}, "no LoRA description"), ({"r": 2.5}, "no LoRA description"),
        ({"r": 10**9}, r"has r=1000000000; .* holds \[\d\]"), ({"target_modules": [1]}, "no LoRA description"),
        ({"lora_alpha": "x"}, "no LoRA description"), ({"lora_alpha": 10**400}, "no LoRA description"),
    ]  # fmt: skip
    save_file(tensors, weights)
    for changes, message in wrong_values:
        description.write_text(json.dumps(values | changes))
        with pytest.raises(ValueError, match=message):
            load_adapter(gpt_neo(), tmp_path)
    description.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"adapter_config.json is damaged"):
        load_adapter(gpt_neo(), tmp_path)
    description.write_text("[]")
    with pytest.raises(ValueError, match="no LoRA description"):
        load_adapter(gpt_neo(), tmp_path)


def test_an_expression_from_a_file_is_not_run(tmp_path):
    """An expression may never finish. The names of the tensors tell which layers are adapted."""
    model = tiny_gpt2()
    add_lora(model, LoraConfig(r".*\.attn\.c_attn", rank=2))
    save_adapter(model, tmp_path, LoraConfig(r".*\.attn\.c_attn", rank=2))
    for expression in ("(.|.)*!", "(", r".*\.attn\.c_attn"):
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": expression}))
        config = load_adapter(fresh := tiny_gpt2(), tmp_path)
        assert set(config.targets) == set(adapters(fresh)) == set(adapters(model))


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_an_adapter_of_a_type_that_is_no_float_is_refused(tmp_path, kind):
    save_adapter(trained(gpt2, ("c_attn",)), tmp_path, LoraConfig(("c_attn",), rank=3, alpha=6))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(kind)}, tmp_path / "adapter_model.safetensors")
    fresh = gpt2()
    with pytest.raises(ValueError, match=r"holds weights that are no floats: .*c_attn.* is torch\."):
        load_adapter(fresh, tmp_path)
    assert adapters(fresh) == {}
