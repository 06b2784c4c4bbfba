"""A tokenizer whose rules let text grow without end is refused before any text goes through them."""

from __future__ import annotations

import json
import time

import pytest

from models.lab.load import load_tokenizer
from ppo.lm.load import load_pretrained
from ppo.lm.tokenizer_bounds import check_tokenizer_file, read_tokenizer
from tests.fakes import tiny_gpt2


def replace(old, new, kind="String"):
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def template(pieces, ids):
    mark = {"id": "<|endoftext|>", "type_id": 0}
    single = [{"SpecialToken": mark}] * pieces + [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0] * ids, "tokens": ["<|endoftext|>"] * ids}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}


ADDED = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
DOUBLING = {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}
GROWING = {
    "one rule": ({"normalizer": replace("a", "b" * 1_000_000)}, "its normalizer makes 1e.06 characters of one"),
    "many rules": ({"normalizer": DOUBLING}, "its normalizer makes 1.1e.12 characters of one"),
    "rules within rules": ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING, DOUBLING]}}, "characters of"),
    "an expression": ({"normalizer": replace("", "ab" * 1000, "Regex")}, "its normalizer makes 2e.03 characters"),
    "a prefix": ({"normalizer": {"type": "Prepend", "prepend": "x" * 5000}}, "its normalizer makes 5e.03"),
    "the decoder": ({"decoder": {"type": "Sequence", "decoders": [replace("a", "aaa")] * 30}}, "its decoder makes"),
    "the template": ({"post_processor": template(2000, 1)}, "its post_processor adds 2001 tokens to a text"),
    "ids of a piece": ({"post_processor": template(1, 10_000)}, "its post_processor adds 20000 tokens to a text"),
    "too many rules": ({"normalizer": {"type": "Sequence", "normalizers": [replace("a", "b")] * 20_000}}, "more than"),
    "added tokens": (
        {"added_tokens": [{"id": 5000 + i, "content": f"x{i}", **ADDED} for i in range(200_000)]},
        "adds 200000 tokens",
    ),
}


@pytest.fixture
def folder(tmp_path):
    tiny_gpt2(vocab=len(load_tokenizer())).save_pretrained(tmp_path)
    load_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", GROWING)
def test_rules_that_grow(folder, kind):
    changes, told = GROWING[kind]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    started = time.monotonic()
    with pytest.raises(ValueError, match=told) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "rules",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}},
        {"normalizer": replace(" {2,}", "▁", "Regex")},
        {"post_processor": template(2, 1)},
        {"decoder": {"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]}},
    ],
)
def test_rules_of_the_field_are_taken(folder, rules):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | rules))
    check_tokenizer_file(path)
    _, tokenizer = load_pretrained(folder)
    assert tokenizer("The value", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("name", ["\x1b[2J", "x\u202e", "a\nb"])
def test_no_name_in_the_settings_acts_on_a_terminal(tmp_path, capfd, file, name):
    """The package tokenizers prints a name that it does not know in Rust, past every filter of Python."""
    load_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / file
    settings = json.loads(path.read_text()) if path.is_file() else {}
    token = {"__type": "AddedToken", "content": "<s>", "special": True, "lstrip": False, "rstrip": False, "unk": 1}
    path.write_text(json.dumps(settings | {"bos_token": token}))
    read_tokenizer(tmp_path)  # a name that is unknown and plain is taken
    path.write_text(json.dumps(settings | {"bos_token": token | {name: 1}}))
    capfd.readouterr()
    with pytest.raises(ValueError, match=f"{file} is damaged: it has the name ") as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    told = "".join(capfd.readouterr())
    assert "\x1b" not in told
    assert "\u202e" not in told
