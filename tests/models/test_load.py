"""Loading models: the lab by name, folders and GGUF files. Anything else gives an error of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import models.load
import ppo.lm.load
from models.lab.load import load_tokenizer
from models.load import load
from ppo.lm.backbone import context_length, vocabulary_size
from tests import fuzz
from tests.fuzz_files import write_gguf
from tests.versions import since_transformers


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def tiny_gpt2(vocabulary: int = 2048) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
        )
    )


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    tiny_gpt2().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def one_line(spec: object) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_lab_by_name():
    loaded = load("lab")
    assert (vocabulary_size(loaded.model), context_length(loaded.model), loaded.spec) == (2048, 256, "lab")
    assert loaded.tokenizer.eos_token_id == loaded.model.config.eos_token_id == 0
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert load("lab:memorised", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert "choose one of lab:memorised, lab:deduplicated, lab:retain-only, lab:without-forget" in one_line("lab:other")


def test_folder_round_trip(folder):
    loaded = load(folder)
    ids = torch.arange(10)[None]
    assert torch.equal(loaded.model(ids).logits, tiny_gpt2().eval()(ids).logits)
    assert loaded.tokenizer.decode(loaded.tokenizer("The value")["input_ids"]) == "The value"


def test_saved_lab_model_loads_again(tmp_path):
    lab = load("lab")
    lab.model.save_pretrained(tmp_path)
    lab.tokenizer.save_pretrained(tmp_path)
    ids = torch.arange(30)[None]
    assert torch.equal(load(tmp_path).model(ids).logits, lab.model(ids).logits)


def test_folder_without_config(tmp_path):
    assert "has no config.json" in one_line(tmp_path)


def test_broken_config_and_weights(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert f"model={str(folder)!r} cannot be loaded" in one_line(folder)
    weights.unlink()
    assert f"model={str(folder)!r} cannot be loaded" in one_line(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert f"model={str(folder)!r} cannot be loaded" in one_line(folder)
    (folder / "config.json").write_text('{"model_type": "no-such-model"}', encoding="utf-8")
    assert f"model={str(folder)!r} cannot be loaded" in one_line(folder)


def test_missing_weights_are_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.0.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights for transformer.h.0.mlp.c_fc.weight" in one_line(folder)


def test_weights_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 32}))
    assert f"model={str(folder)!r} cannot be loaded" in one_line(folder)


def test_pickled_objects_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": folder}, folder / "pytorch_model.bin")
    assert f"model={str(folder)!r} cannot be loaded" in one_line(folder)


def test_models_that_are_no_causal_lm(tmp_path, tokenizer):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=2048, **small)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    assert "is no causal LM but BertForMaskedLM" in one_line(tmp_path / "bert")
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    assert "is no causal LM but T5ForConditionalGeneration" in one_line(tmp_path / "t5")


def test_missing_or_foreign_tokenizer(tmp_path, tokenizer):
    tiny_gpt2(100).save_pretrained(tmp_path)
    assert f"the tokenizer of model={str(tmp_path)!r} encodes nothing" in one_line(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "the tokenizer knows 2048 tokens, the model 100" in one_line(tmp_path)


def test_hub_id_out_of_reach(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(ppo.lm.hub, "_unreachable", lambda *_: None)
    monkeypatch.setattr(ppo.lm.hub, "snapshot_download", unreachable)
    message = one_line("nobody/nothing")
    assert message.startswith(
        "model='nobody/nothing' cannot be loaded as a causal LM: We couldn't connect to the hub; give 'lab'"
    )


def test_gguf_errors(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    assert "is not a file; check the path" in one_line(path)
    path.write_bytes(fuzz.gguf())
    monkeypatch.setattr(models.load.importlib.util, "find_spec", lambda name: None)
    assert "needs the packages gguf and accelerate: pip install gguf accelerate" in one_line(path)


@since_transformers("5.10", "reads more tokens from a GGUF file than its model has")
def test_gguf_file(tmp_path, tokenizer):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model, json.loads(tokenizer.backend_tokenizer.to_str()))
    loaded = load(path)
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    assert loaded.tokenizer("The value of")["input_ids"] == tokenizer("The value of")["input_ids"]
    loaded.model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    model.config.intermediate_size = 10**9
    write_gguf(path, model, json.loads(tokenizer.backend_tokenizer.to_str()))
    assert "weights, its files hold 146592; give" in one_line(path)
    path.write_bytes(path.read_bytes()[:50])
    assert f"GGUF model {path} is damaged: it promises 21 tensors" in one_line(path)
