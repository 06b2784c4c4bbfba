"""Chat messages as token ids: one BOS whoever writes it, and one line for what a template cannot take."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ppo.prompts import read_prompts, read_texts
from tests.fakes import Letters, one_line

WORDS = ["<s>", "</s>", "<u>", "<a>", "<y>", "hello", "there", "who", "?"]
TURNS = (
    "{% for m in messages %}{{ {'user': '<u>', 'assistant': '<a>', 'system': '<y>'}[m.role] + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
HELLO = [{"role": "user", "content": "hello there"}]
ANSWERED = [*HELLO, {"role": "assistant", "content": "who ?"}]


def tokenizer(template, *, is_adding=False, bos="<s>"):
    """A real tokenizer of nine words. ``is_adding``: its post-processor puts a BOS before any text."""
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if is_adding:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=bos, eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": ["<s>", "<u>", "<a>", "<y>"]})
    made.chat_template = template
    return made


def words_of(ids):
    return [WORDS[i] for i in ids]


WRITES, TWICE = "{{ bos_token }}" + TURNS, "{{ bos_token }}{{ bos_token }}" + TURNS


@pytest.mark.parametrize(
    ("template", "is_adding", "start"),
    [
        (WRITES, True, ["<s>"]),
        (WRITES, False, ["<s>"]),
        (TURNS, True, ["<s>"]),
        (TWICE, True, ["<s>"]),
        (TURNS, False, []),
    ],
    ids=["both", "template", "tokenizer", "twice", "neither"],
)
def test_one_bos_whoever_writes_it(template, is_adding, start):
    (prompt,) = read_prompts([HELLO], tokenizer(template, is_adding=is_adding))
    assert words_of(prompt.ids) == [*start, "<u>", "hello", "there", "<a>"]
    assert prompt.text == "<u>hello there<a>"  # without the BOS, as the text of a string has none
    assert prompt.row == {"prompt": HELLO}


def test_a_tokenizer_without_a_bos():
    (prompt,) = read_prompts([HELLO], tokenizer(TURNS, bos=None))
    assert words_of(prompt.ids) == ["<u>", "hello", "there", "<a>"]


def test_the_text_encodes_to_the_same_ids():
    made = tokenizer(WRITES, is_adding=True)
    (prompt,) = read_prompts([HELLO], made)
    assert read_prompts([prompt.text], made)[0].ids == prompt.ids


def test_rows_hold_messages_too_and_a_system_message_stays():
    messages = [{"role": "system", "content": "who"}, *HELLO]
    row = {"prompt": messages, "answer": 3}
    (prompt,) = read_prompts([row], tokenizer(WRITES))
    assert words_of(prompt.ids) == ["<s>", "<y>", "who", "<u>", "hello", "there", "<a>"]
    assert prompt.row == row


def test_an_answer_that_was_begun_goes_on():
    (prompt,) = read_prompts([ANSWERED], tokenizer(WRITES))
    assert words_of(prompt.ids) == ["<s>", "<u>", "hello", "there", "<a>", "who", "?"]


def test_text_to_keep_is_the_whole_conversation():
    (text,) = read_texts([ANSWERED], tokenizer(WRITES))
    assert words_of(text.ids) == ["<s>", "<u>", "hello", "there", "<a>", "who", "?", "</s>"]
    (open_ended,) = read_texts([HELLO], tokenizer(WRITES))
    assert words_of(open_ended.ids) == ["<s>", "<u>", "hello", "there"]


def test_a_template_that_takes_parts():
    parts = "{% for m in messages %}<u>{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}<a>"
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert words_of(read_prompts([messages], tokenizer(parts))[0].ids) == ["<u>", "hello", "<a>"]


def test_a_call_of_a_tool_has_no_content():
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [{"name": "who"}]}, *HELLO]
    template = "{% for m in messages %}<u>{{ m.content or m.tool_calls[0].name }}{% endfor %}<a>"
    ids = read_prompts([messages], tokenizer(template))[0].ids
    assert words_of(ids) == ["<u>", "hello", "there", "<u>", "who", "<u>", "hello", "there", "<a>"]


REFUSES = "{{ raise_exception('roles must alternate\nuser, assistant') }}"
PRINTS = "{% for m in messages %}<u>{{ m.content }}{% endfor %}<a>"
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]


@pytest.mark.parametrize(
    ("messages", "read_by", "message"),
    [
        (HELLO, None, "prompt 1 holds chat messages, which need a tokenizer"),
        (HELLO, Letters(), "prompt 1 holds chat messages, and the tokenizer has no chat template: set tokenizer.chat"),
        (HELLO, tokenizer(None), "prompt 1 holds chat messages, and the tokenizer has no chat template"),
        ([{"content": "hello"}], tokenizer(TURNS), "prompt 1, message 0 has no role"),
        ([*HELLO, {"role": 3, "content": "who"}], tokenizer(TURNS), "prompt 1, message 1 has no role"),
        ([{"role": "user"}], tokenizer(TURNS), "prompt 1, message 0 has the content None; expected a string"),
        ([{"role": "user", "content": 3}], tokenizer(TURNS), "prompt 1, message 0 has the content 3; expected"),
        ([*HELLO, "who"], tokenizer(TURNS), "prompt 1, message 1 is 'who'; expected {'role'"),
        ([{"role": "king", "content": "who"}], tokenizer(TURNS), "prompt 1: the chat template does not take these"),
        (HELLO, tokenizer(REFUSES), "prompt 1: the chat template does not take these messages: roles must alternate"),
        (PARTS, tokenizer(TURNS), "prompt 1: the chat template does not take these messages: can only concatenate"),
        (PARTS, tokenizer(PRINTS), "prompt 1: the chat template takes content as a string only"),
    ],
)
def test_what_cannot_be_a_conversation_is_named_in_one_line(messages, read_by, message):
    with pytest.raises(ValueError, match=one_line(message)):
        read_prompts([[3, 2], messages], read_by)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 10.0 ** 400 }}", "Numerical result out of range"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth exceeded"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "maximum recursion depth exceeded"),
        ("{{ messages.pop(7) }}", "immutable|pop"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{{ raise_exception('\\x1b[2J\\u202e') }}", r"these messages: \\x1b\[2J\\u202e"),
        ("{% for a in range(20000) %}{{ 'x' * 1000 }}{% endfor %}", "template makes 20000000 characters of it"),
        ("x" * 2**20 + "{{ 1 }}", "the chat template has 1048583 characters, at most 1048576"),
    ],
)  # fmt: skip
def test_what_a_template_may_do_is_one_line(template, told):
    with pytest.raises(ValueError, match=told) as caught:
        read_prompts([HELLO], tokenizer(template))
    assert str(caught.value).startswith("prompt 0")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
