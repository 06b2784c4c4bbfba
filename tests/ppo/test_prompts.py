"""Prompts of every kind, and the order of a run."""

import numpy as np
import pytest
import torch

from ppo.prompts import PromptStream, check_lengths, read_prompts, read_texts
from tests.fakes import Letters, one_line


def test_strings_ids_and_dicts():
    prompts = read_prompts(["ab", [2, 3], {"prompt": "b", "suffix": "c"}, np.array([4])], Letters())
    assert [p.ids for p in prompts] == [[2, 3], [2, 3], [3], [4]]
    assert [p.text for p in prompts] == ["ab", "ab", "b", "c"]
    assert prompts[2].row == {"prompt": "b", "suffix": "c"}
    assert prompts[0].row == {"prompt": "ab"}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", ""], "prompt 1 is empty"),
        (["a", []], "prompt 1 is empty"),
        (["a", {"text": "b"}], "prompt 1 is a dict without the key 'prompt'; its keys: ['text']"),
        ([{"messages": []}], "prompt 0 is a dict without the key 'prompt'; rename 'messages', without the answer"),
        ([{"role": "user", "content": "a"}], "without the key 'prompt'; it is one chat message: a prompt is a list"),
        ([{"input_ids": [2], "attention_mask": [1]}], "without the key 'prompt'; give its ids without padding"),
        ([{"prompt": {"input_ids": [2]}}], "prompt 0 is a dict: give its input_ids, without padding"),
        ([3.5], "prompt 0 is 3.5; expected a string, a list of token ids or chat messages"),
        ([[1, 2.5]], "prompt 0 is [1, 2.5]; expected"),
        ([[True, False]], "prompt 0 is [True, False]; expected"),
        ([torch.tensor([True])], "prompt 0 is tensor([True]); expected"),
        ([np.array([1.0])], "prompt 0 is array([1.]); expected"),
        ([[2, None]], "prompt 0 is [2, None]; expected"),
        (["a", None], "prompt 1 is None; expected"),
        ([[[2], [3, 4]]], "prompt 0 is [[2], [3, 4]]; expected"),
        ([["a", "b"]], "prompt 0 is ['a', 'b']; expected"),
        ([{2, 3}], "prompt 0 is {2, 3}; expected"),
        ([b"ab"], "prompt 0 is b'ab': give a string, such as .decode('utf-8') of it"),
        ([torch.zeros(1, 3, dtype=torch.long)], "prompt 0 is a 2-D Tensor, whose short rows hold padding: give lists"),
    ],
)
def test_wrong_prompts_are_named_in_one_line(prompts, message):
    with pytest.raises(ValueError, match=one_line(message)):
        read_prompts(prompts, Letters())


def test_ids_of_any_integer_type():
    prompts = read_prompts([torch.tensor([2, 3]), list(np.array([4])), (5, 6), range(2, 4)], Letters())
    assert [p.ids for p in prompts] == [[2, 3], [4], [5, 6], [2, 3]]
    assert all(type(i) is int for p in prompts for i in p.ids)


class Padding(Letters):
    """Letters with special tokens that have names."""

    def __init__(self, pad, *, eos=1):
        self.pad_token_id, self.eos_token_id, self.bos_token_id, self.unk_token_id = pad, eos, None, None


@pytest.mark.parametrize("ids", [[0, 0, 2, 3], [2, 3, 0]])
def test_padding_at_an_end_is_refused(ids):
    with pytest.raises(
        ValueError, match="prompt 1 begins or ends with padding, the token id 0: give ids without padding"
    ):
        read_prompts([[2], ids], Padding(0))
    assert read_prompts([ids], Padding(0, eos=0))[0].ids == ids  # an EOS may be meant
    assert read_prompts([ids], Padding(None))[0].ids == ids
    assert read_prompts([[2, 0, 3]], Padding(0))[0].ids == [2, 0, 3]


def test_texts_to_keep_are_named_as_such():
    with pytest.raises(ValueError, match="retain text 1 is None; expected"):
        read_texts(["a", None], Letters())
    with pytest.raises(ValueError, match="retain='ab' is a str"):
        read_texts("ab", Letters())


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


@pytest.mark.parametrize("bad", [-1, 2**31, 2**70])
def test_an_id_that_no_vocabulary_holds_is_named_before_it_is_decoded(bad):
    with pytest.raises(ValueError, match=f"prompt 1 holds the token id {bad}"):
        read_prompts([[1], [5, bad]], Letters())
