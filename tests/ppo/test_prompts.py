"""Prompts of every kind, and the order of a run."""

import numpy as np
import pytest
import torch

from ppo.prompts import PromptStream, check_lengths, read_prompts
from tests.fakes import Letters


def test_strings_ids_and_dicts():
    prompts = read_prompts(["ab", [2, 3], {"prompt": "b", "suffix": "c"}, np.array([4])], Letters())
    assert [p.ids for p in prompts] == [[2, 3], [2, 3], [3], [4]]
    assert [p.text for p in prompts] == ["ab", "ab", "b", "c"]
    assert prompts[2].row == {"prompt": "b", "suffix": "c"}
    assert prompts[0].row == {"prompt": "ab"}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "must be a non-empty list"),
        ("abc", "must be a non-empty list"),
        (["a", ""], "prompt 1 is empty"),
        (["a", {"text": "b"}], r"prompt 1 is a dict without the key 'prompt'; its keys: \['text'\]"),
        ([3.5], "prompt 0 is 3.5; expected a string or a list of token ids"),
        ([[1, 2.5]], r"prompt 0 is \[1, 2.5\]; expected"),
    ],
)
def test_wrong_prompts_are_named(prompts, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(prompts, Letters())


def test_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="prompt 0 is a string, which needs a tokenizer"):
        read_prompts(["a"], None)


def test_lengths_and_ids_are_checked():
    prompts = read_prompts([[2, 3, 4]], None)
    with pytest.raises(
        ValueError, match="prompt 0 has 3 tokens; with response_length=6 that exceeds the model's context of 8"
    ):
        check_lengths(prompts, context=8, response_length=6, vocab_size=9)
    with pytest.raises(ValueError, match="outside the model's vocabulary of 4"):
        check_lengths(prompts, context=None, response_length=6, vocab_size=4)
    check_lengths(prompts, context=9, response_length=6, vocab_size=5)


def test_each_pass_takes_every_prompt_once():
    stream = PromptStream(5, torch.Generator().manual_seed(0))
    taken = [i for _ in range(5) for i in stream.take(3)]
    assert [sorted(taken[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert taken[:5] != taken[5:10]


def test_more_prompts_a_step_than_there_are():
    assert sorted(PromptStream(2, torch.Generator()).take(6)) == [0, 0, 0, 1, 1, 1]
