"""Cloze and multiple choice against loops over a tiny model, and final words with real tokenizers."""

import pytest
import torch
from torch import nn

from eval import utility
from eval.perplexity import score_texts
from eval.utility import Cloze, Question
from models.load import load
from tests.fakes import tiny_gpt2


class Characters:
    """A tokenizer with one token per character. Ids are indices of ``ALPHABET``."""

    ALPHABET = " abcdefghijklmnopqrstuv"

    def __call__(self, text, *, add_special_tokens=True):
        return {"input_ids": [self.ALPHABET.index(letter) for letter in text]}

    def decode(self, token_ids, *, skip_special_tokens=False):
        return "".join(self.ALPHABET[int(i)] for i in token_ids)


def logprob(model: nn.Module, ids: list[int], first: int) -> float:
    rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].detach().double(), dim=-1)
    return sum(float(rows[t - 1, ids[t]]) for t in range(first, len(ids)))


def greedy(model: nn.Module, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_cloze_counts_targets_that_greedy_decoding_writes():
    model, tokenizer = tiny_gpt2().eval(), Characters()
    context = "abc"
    written = tokenizer.decode(greedy(model, tokenizer(context)["input_ids"], 2))[3:]
    wrong = written[0] + ("b" if written[1] != "b" else "c")  # only the last token is wrong
    found = utility.cloze_accuracy(model, tokenizer, [Cloze(context, written), Cloze(context, wrong)])
    assert (found.value, found.count) == (0.5, 2)
    assert found.interval == pytest.approx((1 - 0.975**0.5, 0.975**0.5))  # exact: one of two
    with pytest.raises(ValueError, match="at least one item"):
        utility.cloze_accuracy(model, tokenizer, [])
    with pytest.raises(ValueError, match="0 context and 2"):
        utility.cloze_accuracy(model, tokenizer, [Cloze("", "ab")])


def test_multiple_choice_by_sum_and_by_length():
    model, tokenizer = tiny_gpt2().eval(), Characters()
    head = tokenizer("abc")["input_ids"]
    choices = (" d", " dddd", " e")
    sums = [logprob(model, head + tokenizer(c)["input_ids"], 3) for c in choices]
    plain = max(range(3), key=lambda i: sums[i])
    normalised = max(range(3), key=lambda i: sums[i] / len(choices[i].lstrip()))
    assert plain != normalised  # a case in which the two differ
    by_plain, by_length = (Question("abc", choices, answer) for answer in (plain, normalised))
    found = utility.multiple_choice(model, tokenizer, [by_plain, by_plain, by_length])
    assert found.plain.value == pytest.approx(2 / 3)
    assert found.normalised.value == pytest.approx(1 / 3)


def test_trailing_space_of_a_context_belongs_to_the_continuation():
    tokenizer = Characters()
    assert utility.encode_pair(tokenizer, "ab ", "c") == utility.encode_pair(tokenizer, "ab", " c") == ([1, 2], [0, 3])


def test_final_words_of_held_out_text():
    loaded = load("lab")
    text = (
        "A name is bound to the value of the object, and the statement raises an exception. The list is a sequence of "
        "items that are evaluated from left to right. If the argument is e.g. 3.5, nothing happens! Is the object None?"
    )
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    spans = list(utility.word_spans(ids, loaded.tokenizer, {}))
    words = [loaded.tokenizer.decode(ids[first:end]) for first, end in spans]
    assert words == [" exception", " right", " happens", " None"]
    pieces = score_texts(loaded.model, [ids])
    found = utility.final_words(pieces, loaded.tokenizer)
    late = [(first, end) for first, end in spans if first >= utility.MIN_CONTEXT]
    assert 0 < len(late) == len(found)
    for (first, end), (number, is_right) in zip(late, found, strict=True):
        assert number == 0
        assert is_right == (greedy(loaded.model, ids[:first], end - first)[first:] == ids[first:end])


def test_words_are_found_with_a_tokenizer_that_drops_a_leading_space():
    class Sentencepiece:
        pieces = ("▁one", "▁two", "s", ".", "▁x")

        def decode(self, token_ids, *, skip_special_tokens=False):
            return "".join(self.pieces[i] for i in token_ids).replace("▁", " ").removeprefix(" ")

    ids = [0, 1, 2, 3, 0, 1]
    assert list(utility.word_spans(ids, Sentencepiece(), {})) == [(1, 3)]


def test_items_from_jsonl(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"text": "He gave it to Anna"}\n{"context": "a b", "target": " c"}\n')
    assert utility.read_cloze(path) == [Cloze("He gave it to", " Anna"), Cloze("a b", " c")]
    path.write_text('{"text": "one"}\n')
    with pytest.raises(ValueError, match=r"items\.jsonl, line 1 needs"):
        utility.read_cloze(path)
    path.write_text('{"context": "2 + 2 =", "choices": ["4", " 5"], "answer": 0}\n')
    assert utility.read_questions(path) == [Question("2 + 2 =", (" 4", " 5"), 0)]
    for row, message in (
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "answer=2"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "two choices"),
        ('{"context": "a", "choices": "bc", "answer": 0}', "list of strings"),
        ('{"context": "a"', "is malformed JSON"),
    ):
        path.write_text(row + "\n")
        with pytest.raises(ValueError, match=rf"line 1.*{message}"):
            utility.read_questions(path)
