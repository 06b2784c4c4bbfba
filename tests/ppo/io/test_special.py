"""One BOS, no EOS at the end of a prompt, and a word about an EOS that ends nothing."""

import warnings

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import ppo
from ppo.io.special import check_special_tokens
from ppo.prompts import read_prompts, read_texts
from tests.fakes import one_line, tiny_gpt2

WORDS = ["<s>", "</s>", "<end>", "hello", "there", "?"]
BOS, EOS, END, HELLO, THERE = range(5)


def tokenizer(template="$A", *, bos="<s>", eos="</s>"):
    """A real tokenizer of six words that puts around a text what ``template`` says."""
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS), ("<end>", END)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=bos, eos_token=eos)
    made.add_special_tokens({"additional_special_tokens": ["<s>", "</s>", "<end>"]})
    return made


def encoded(text, made, read=read_prompts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (prompt,) = read([text], made)
    return prompt.ids, [str(w.message) for w in caught if w.category is RuntimeWarning]


@pytest.mark.parametrize(
    ("template", "text", "ids", "word"),
    [
        ("$A", "hello there", [HELLO, THERE], None),
        ("<s> $A", "hello", [BOS, HELLO], None),
        ("<s> $A", "<s> hello", [BOS, HELLO], "'<s>'"),
        ("<s> <s> $A", "<s> hello", [BOS, HELLO], "'<s>'"),
        ("$A", "<s> <s> hello", [BOS, BOS, HELLO], None),  # as it was written
        ("<s> $A", "<s> <s> hello", [BOS, BOS, HELLO], "'<s>'"),
        ("<s> $A </s>", "hello", [BOS, HELLO], "'</s>'"),
        ("<s> $A </s>", "<s> hello", [BOS, HELLO], "'</s>'"),
        ("$A </s>", "hello </s>", [HELLO, EOS], "'</s>'"),
        ("$A", "hello </s>", [HELLO, EOS], None),
        ("<s> $A </s>", "", [BOS], "'</s>'"),
    ],
)
def test_what_a_tokenizer_puts_around_a_prompt(template, text, ids, word):
    found, words = encoded(text, tokenizer(template))
    assert found == ids
    assert bool(words) == (word is not None)
    assert word is None or word in words[0]


def test_a_bos_that_is_the_eos_is_no_end():
    """OPT's tokenizer puts its EOS before a text; an empty text is that token alone."""
    for text, ids in (("hello", [EOS, HELLO]), ("", [EOS])):
        assert encoded(text, tokenizer("</s> $A", bos="</s>")) == (ids, [])


def test_text_to_keep_ends_where_it_ends():
    assert encoded("hello", tokenizer("<s> $A </s>"), read_texts) == ([BOS, HELLO, EOS], [])


def test_many_prompts_are_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        read_prompts(["hello"] * 9 + ["there"], tokenizer("$A </s>"))
    assert len(caught) == 1


def test_an_eos_that_ends_nothing_is_named():
    chat = tokenizer(eos="<end>")
    with pytest.warns(RuntimeWarning, match=r"'<end>' \(2\) ends no response.*ends them at \[1\].*= \[1, 2\]"):
        check_special_tokens(chat, [EOS], vocab_size=6)
    with pytest.warns(RuntimeWarning, match=r"names no end: .*= \[2\]"):
        check_special_tokens(chat, [], vocab_size=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_special_tokens(chat, [EOS, END], vocab_size=6)
        check_special_tokens(chat, [], vocab_size=2)  # the model does not have it
        check_special_tokens(tokenizer(eos=None), [], vocab_size=6)
        check_special_tokens(None, [], vocab_size=6)


def test_the_trainer_says_it():
    with pytest.warns(RuntimeWarning, match="'<end>'"):
        ppo.Trainer(
            tiny_gpt2(),
            [[5]],
            lambda s: [0.0] * len(s),
            ppo.Config(response_length=4),
            tokenizer=tokenizer(eos="<end>"),
        )


def test_a_raw_tokenizer_is_wrapped_by_the_caller():
    with pytest.raises(ValueError, match=r"tokenizers\.Tokenizer, which cannot be called: wrap it") as caught:
        ppo.Trainer(tiny_gpt2(), [[5]], lambda s: [0.0] * len(s), tokenizer=tokenizer()._tokenizer)
    one_line(str(caught.value))
