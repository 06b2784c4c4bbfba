"""Models by folder, hub id or object, as ``ppo.Trainer`` takes them. All others get an error that says why."""

from __future__ import annotations

import io
import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import ppo
from ppo.lm.load import load_model, load_pretrained
from tests.fakes import VOCAB, Letters, tiny_gpt2, tiny_opt

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT = hf.BertConfig(vocab_size=VOCAB, **SMALL)
T5 = hf.T5Config(vocab_size=VOCAB, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)


def letters(count: int = VOCAB) -> hf.PreTrainedTokenizerFast:
    """``count`` tokens: <unk>, <eos>, A, B, C, … There is no lower case, as in a model of proteins."""
    vocabulary = {"<unk>": 0, "<eos>": 1} | {chr(ord("A") + i): i + 2 for i in range(count - 2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_gpt2().save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    return tmp_path


def one_line(model: object) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_model(model, None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_with_its_tokenizer(folder):
    model, tokenizer = load_model(folder, None)
    ids = torch.arange(2, 12)[None]
    assert torch.equal(model(ids).logits, tiny_gpt2().eval()(ids).logits)
    assert tokenizer("CAB")["input_ids"] == [4, 2, 3]
    assert load_pretrained(str(folder), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_given_tokenizer_is_used_as_it_is(folder):
    mine = Letters()
    assert load_model(folder, mine)[1] is mine
    model = tiny_gpt2().train()
    assert load_model(model, mine) == (model, mine)
    assert model.training


def test_a_folder_that_holds_no_model(tmp_path):
    assert "is a folder that has no config.json; name a folder that save_pretrained wrote" in one_line(tmp_path)


@pytest.mark.parametrize("model", [None, 5, {"name": "gpt2"}])
def test_what_names_no_model(model):
    with pytest.raises(ValueError, match=r"^model=.* must be a loaded causal LM .*, a folder or a hub id$"):
        ppo.generate(model, [[1]])


def test_broken_files(folder):
    failure = f"model={str(folder)!r} cannot be loaded as a causal LM"
    edit(folder / "config.json", n_embd=32)
    assert failure in one_line(folder)
    edit(folder / "config.json", n_embd=16)
    (folder / "model.safetensors").write_bytes(b"1234567890")
    assert failure in one_line(folder)
    (folder / "model.safetensors").unlink()
    assert f"{failure}: it has no safetensors file in its folder, and no pytorch_model.bin" in one_line(folder)
    (folder / "config.json").write_text("{")
    assert failure in one_line(folder)


def test_a_config_that_no_forward_pass_can_follow(folder):
    edit(folder / "config.json", n_head=-1)
    assert f"model={str(folder)!r} cannot be run: " in one_line(folder)


def test_missing_weights_are_an_error_and_not_random(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.0.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights for transformer.h.0.mlp.c_fc.weight; they would be random" in one_line(folder)


@pytest.mark.parametrize("kinds", [["BertForMaskedLM"], ["BertLMHeadModel"], None])
def test_an_encoder_in_a_folder(folder, kinds):
    """All three load as a BertLMHeadModel without a missing weight. Only the first one's config shows the encoder."""
    hf.BertForMaskedLM(BERT).save_pretrained(folder)
    edit(folder / "config.json", architectures=kinds)
    expected = "is no causal LM but BertForMaskedLM" if kinds == ["BertForMaskedLM"] else "see the tokens after it"
    assert expected in one_line(folder)


def test_an_encoder_decoder_or_a_classifier_in_a_folder(folder):
    hf.T5ForConditionalGeneration(T5).save_pretrained(folder)
    assert "is no causal LM but T5ForConditionalGeneration" in one_line(folder)
    config = hf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    hf.GPT2ForSequenceClassification(config).save_pretrained(folder)
    assert "is no causal LM but GPT2ForSequenceClassification" in one_line(folder)


def test_a_class_name_that_the_hub_spells_differently_is_accepted(folder):
    """mosaicml/mpt-7b names MPTForCausalLM, and transformers has MptForCausalLM."""
    config = hf.MptConfig(vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=1)
    hf.MptForCausalLM(config).save_pretrained(folder)
    edit(folder / "config.json", architectures=["MPTForCausalLM"])
    assert isinstance(load_model(folder, None)[0], hf.MptForCausalLM)


@pytest.mark.parametrize("kinds", [5, "GPT2LMHeadModel", {"a": 1}, [["GPT2LMHeadModel"]], [None], [1]])
def test_architectures_that_are_no_names(folder, kinds):
    edit(folder / "config.json", architectures=kinds)
    text = one_line(folder)
    assert f"its config.json has architectures={kinds!r}; it must be a list of names" in text
    assert str(folder) in text


def test_a_tokenizer_that_is_missing_or_too_large(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    assert f"the tokenizer of model={str(tmp_path)!r} encodes nothing" in one_line(tmp_path)
    letters(VOCAB + 1).save_pretrained(tmp_path)
    assert f"the tokenizer knows {VOCAB + 1} tokens, the model {VOCAB}" in one_line(tmp_path)
    config = hf.LlamaConfig(vocab_size=VOCAB, **SMALL)
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    assert "the tokenizer of model=" in one_line(tmp_path / "llama")


def test_loaded_models_that_are_no_causal_lm():
    assert "BertLMHeadModel lets a token see the tokens after it" in one_line(hf.BertLMHeadModel(BERT))
    assert "T5ForConditionalGeneration is no causal LM" in one_line(hf.T5ForConditionalGeneration(T5))
    assert "GPT2Model is no causal LM" in one_line(tiny_gpt2().transformer)
    decoder = hf.BertLMHeadModel(hf.BertConfig(vocab_size=VOCAB, is_decoder=True, **SMALL))
    assert load_model(decoder, None) == (decoder, None)


def test_the_trainer_refuses_a_model_of_which_nothing_is_trained():
    def train(model):
        config = ppo.Config(response_length=4)
        return ppo.Trainer(model, prompts=[[2, 3]], reward=lambda samples: [0.0] * len(samples), config=config)

    model = tiny_gpt2().requires_grad_(False)
    with pytest.raises(ValueError, match="none of the weights of this GPT2LMHeadModel requires a gradient") as caught:
        train(model)
    assert "\n" not in str(caught.value)
    model.transformer.ln_f.bias.requires_grad_(True)
    train(model)


def test_a_compiled_model_is_the_model_in_it():
    model = tiny_gpt2()
    assert load_model(torch.compile(model, backend="eager"), None) == (model, None)


@pytest.mark.parametrize("as_folder", [True, False])
def test_the_trainer_refuses_an_encoder(folder, as_folder):
    model = hf.BertLMHeadModel(BERT)
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="is no causal LM"):
        ppo.Trainer(folder if as_folder else model, prompts=[[2, 3]], reward=lambda samples: [0.0] * len(samples))


def test_a_hub_id_is_read_like_the_folder_that_is_downloaded(folder, monkeypatch):
    asked = []

    def download(source, *, allow_patterns, **_):
        asked.append((source, allow_patterns))
        return str(folder)

    monkeypatch.setattr(ppo.lm.hub, "snapshot_download", download)
    monkeypatch.setattr(ppo.lm.hub, "_unreachable", lambda *_: None)
    model, tokenizer = load_pretrained("somebody/gpt2")
    assert torch.equal(model.lm_head.weight, tiny_gpt2().lm_head.weight)
    assert tokenizer("CAB")["input_ids"] == [4, 2, 3]
    assert asked[0] == ("somebody/gpt2", ["config.json"])  # the config comes before any large file
    assert not any("*.bin" in patterns or "*.py" in patterns for _, patterns in asked)
    asked.clear()
    edit(folder / "config.json", architectures=["T5ForConditionalGeneration"])
    assert "is no causal LM but T5ForConditionalGeneration" in one_line("somebody/gpt2")
    assert len(asked) == 1
    edit(folder / "config.json", architectures=["GPT2LMHeadModel"], num_labels=10**9)
    assert "model='somebody/gpt2' cannot be loaded as a causal LM" in (said := one_line("somebody/gpt2"))
    assert "num_labels is 1000000000, at most" in said


@pytest.mark.parametrize("length", [[], "long", {"a": 1}])
def test_a_tokenizer_that_cannot_encode(folder, length):
    edit(folder / "tokenizer_config.json", model_max_length=length)
    said = one_line(folder)
    assert f"model={str(folder)!r}" in said
    assert "tokenizer" in said


# ---------------------------------------------------------------------- PyTorch's own weights


def as_opt_of_the_hub(folder: Path) -> hf.OPTForCausalLM:
    """The layout of facebook/opt-125m: float16, names without "model.", no safetensors."""
    model = tiny_opt().eval()
    model.config.save_pretrained(folder)
    letters().save_pretrained(folder)
    half = {name.removeprefix("model."): x.half() for name, x in model.state_dict().items()}
    torch.save(half, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("is_old", [False, True])
def test_pytorch_weights_are_read_where_there_are_no_others(tmp_path, is_old):
    model = as_opt_of_the_hub(tmp_path)
    if is_old:  # as torch wrote before 1.6
        held = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        torch.save(held, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="has no safetensors file: its pytorch_model.bin is read, tensors only"):
        loaded, _ = load_model(tmp_path, None)
    for name, x in loaded.state_dict().items():
        assert torch.equal(x, model.state_dict()[name].half().float()), name
    trainer = ppo.Trainer(
        loaded, [[2, 3]], lambda s: [1.0] * len(s), ppo.Config(prompts_per_step=1, minibatch=1, response_length=4)
    )
    assert len(trainer.rollout()) == 1


def test_pytorch_weights_in_parts(tmp_path):
    model = as_opt_of_the_hub(tmp_path)
    held = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    (tmp_path / "pytorch_model.bin").unlink()
    names = sorted(held)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, some in parts.items():
        torch.save({name: held[name] for name in some}, tmp_path / file)
    weight_map = {name: file for file, some in parts.items() for name in some}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.warns(UserWarning, match="tensors only"):
        loaded, _ = load_model(tmp_path, None)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.half().float())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "../elsewhere.bin")}))
    assert "names '../elsewhere.bin', which is no .bin file of its folder" in one_line(tmp_path)


def test_safetensors_come_first(folder):
    torch.save({"transformer.wte.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_model(folder, None)


class Runs:
    """What a hostile file holds: a call."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"decoder.embed_tokens.weight": Runs()}, "of tensors alone, and whatever else is in it is not run"),
        ([torch.zeros(1)], "holds something other than tensors by name"),
        ({"a": torch.zeros(1).expand(10**9)}, "is damaged: a has 4000000000 bytes, more than the file's"),
    ],
)
def test_what_is_no_weights_is_refused(tmp_path, monkeypatch, held, said):
    as_opt_of_the_hub(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save(held, tmp_path / "pytorch_model.bin")
    assert said in one_line(tmp_path)
    assert not Path("ran").exists()


def test_a_file_that_was_cut_is_refused(tmp_path):
    as_opt_of_the_hub(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:2000])
    assert "is damaged" in one_line(tmp_path)


def test_a_hub_id_without_safetensors_is_asked_for_pytorch_weights(tmp_path, monkeypatch):
    asked = []
    as_opt_of_the_hub(tmp_path)

    def download(source, *, allow_patterns, **_):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(ppo.lm.hub, "snapshot_download", download)
    monkeypatch.setattr(ppo.lm.hub, "_unreachable", lambda *_: None)
    with pytest.warns(UserWarning, match="tensors only"):
        load_pretrained("facebook/opt-125m")
    assert ["pytorch_model*.bin" in patterns for patterns in asked[:3]] == [False, False, True]


def test_a_wrapper_of_several_processes_is_taken_off_by_the_caller():
    with pytest.raises(ValueError, match=r"a DataParallel around a GPT2LMHeadModel: pass its \.module"):
        load_model(torch.nn.DataParallel(tiny_gpt2()), None)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["transformer.h.0.mlp.c_fc.weight", "transformer.h.1.ln_1.bias"])
@pytest.mark.parametrize("is_safe", [True, False])
def test_weights_of_a_type_that_is_no_float(folder, kind, name, is_safe):
    """transformers would cast them, and the model would speak nonsense."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].to(kind)
    if is_safe:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    assert f"its weight {name} is of type " in one_line(folder)


def test_masks_of_other_types_may_stand_beside_the_weights(folder):
    """Old files of GPT-2 hold them."""
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder, None)


def test_a_name_that_acts_on_a_terminal_is_shown_in_what_the_loader_prints(folder):
    """transformers lists the weights that no model has."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logging.getLogger("transformers").addHandler(handler)
    held = load_file(folder / "model.safetensors")
    save_file(held | {"evil\x1b[2J": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        load_pretrained(folder)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert "evil\\x1b[2J" in told.getvalue()
    assert "\x1b" not in told.getvalue()
