"""Half characters are refused where a run reads, and replaced and counted where a tokenizer makes them."""

import json
from types import SimpleNamespace

import pytest
import torch

import ppo
from ppo.io.files import read_json, replace_text
from ppo.io.rows import jsonl_rows
from ppo.io.surrogates import readable, refuse_surrogates, without_surrogates
from ppo.log import RunLog, read_jsonl
from ppo.prompts import Prompt, make_samples, read_prompts
from tests.fakes import tiny_gpt2

HALF = "a\ud800b"


@pytest.mark.parametrize(
    "value", [HALF, [HALF], {"x": HALF}, {HALF: 1}, {"x": [{"y": [1, HALF]}]}, ("a", (HALF,)), "\udcff"]
)
def test_a_half_character_is_found_anywhere(value):
    with pytest.raises(ValueError, match=r"^here holds '\\ud[8c].*'.* half a character .*: write the") as error:
        refuse_surrogates(value, "here")
    assert str(error.value).isprintable()


def test_whole_characters_are_taken(tmp_path):
    refuse_surrogates({"a": ["😀", "é", 1, None]}, "here")
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n')  # both halves
    assert [row for _, row in jsonl_rows(path)] == read_jsonl(path) == [{"text": "😀"}]


def test_it_is_found_at_any_depth():
    value = HALF
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="half a character"):
        refuse_surrogates(value, "here")


@pytest.mark.parametrize("read", [lambda path: list(jsonl_rows(path)), read_jsonl])
def test_files_of_rows_name_the_line_and_the_field(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a"}\n{"id": "\\uD800"}\n{"id": "b"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 holds '\\ud800' in 'id'"):
        read(path)


def test_json_files_are_named(tmp_path):
    path = tmp_path / "\x1b[2J.json"
    path.write_text('{"model": "\\udfff"}')
    with pytest.raises(ValueError, match=r"/\\x1b\[2J\.json holds '\\udfff' in 'model'"):
        read_json(path)


PROMPTS = [HALF, {"prompt": "whole", "suffix": HALF}, [{"role": "user", "content": HALF}]]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_name_the_index(prompt):
    with pytest.raises(ValueError, match=r"^prompt 1 holds '\\ud800'.* half a character"):
        read_prompts(["whole", prompt], tokenizer=Halving())


def test_a_config_takes_none():
    with pytest.raises(ValueError, match=r"^Config\.best_metric='a\\ud800b' holds '\\ud800'"):
        ppo.Config(best_metric=HALF)


class Halving:
    """A tokenizer that decodes every id to half a character."""

    chat_template = "none"

    def __call__(self, text, **more):
        return {"input_ids": [1]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(0xD800 + i) for i in ids)


def test_what_a_model_writes_is_replaced_and_counted():
    generated = ppo.generate(tiny_gpt2(), [[2], [3]], ppo.Sampling(response_length=2), seed=0)
    prompts = [Prompt([2], "", {}), Prompt([9], "", {})]  # the second one's sampler began elsewhere
    with pytest.warns(RuntimeWarning, match="decodes 2 of 2 responses to half characters"):
        samples = make_samples(prompts, generated, Halving())
    assert {sign for sample in samples for sign in sample.text + sample.prompt} == {"\ufffd"}
    assert samples[1].prompt
    assert readable(["a", "é"], name="texts") == ["a", "é"]


def test_no_writer_fails_for_one(tmp_path):
    replace_text(tmp_path / "a.json", json.dumps({"x": HALF}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"x": without_surrogates(HALF)} == {"x": "a\ufffdb"}
    (tmp_path / "run").mkdir()
    log = RunLog(tmp_path / "run")
    log.metrics(0, {HALF: 1.0})
    written = SimpleNamespace(context=None)
    sample = SimpleNamespace(prompt=HALF, text=HALF)
    log.samples(0, SimpleNamespace(generation=written, samples=[sample], scores=torch.zeros(1)))
    log.close()
    assert read_jsonl(tmp_path / "run" / "samples.jsonl")[0]["response"] == "a\ufffdb"
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]["a\ufffdb"] == 1.0
