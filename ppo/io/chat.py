"""Chat messages through a tokenizer's chat template, as token ids with one BOS.

A template may write the BOS into its text (Llama's does), and a tokenizer may put one before any text. Encoding such a
text as any other gives two; encoding it without special tokens gives none where the template leaves it to the
tokenizer. Here the ids begin with exactly one if either of them writes it, and with none if neither does (Qwen's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .surrogates import refuse_surrogates
from .visible import visible

MOST_TEMPLATE = 2**20  # characters; those of known models have some thousands
MOST_RENDERED = 16 * 2**20  # characters of a conversation


def is_chat(content: Any) -> bool:
    """Whether a prompt is meant as messages: a list with a dict in it."""
    return isinstance(content, list | tuple) and any(isinstance(message, Mapping) for message in content)


def encode_chat(
    messages: Sequence[Any], tokenizer: Any | None, *, where: str, is_whole: bool = False
) -> tuple[list[int], str]:
    """Token ids of a conversation and the text that they stand for, without its BOS.

    The text ends where an answer begins. If the last message is the assistant's, the answer goes on with it, as in TRL.
    ``is_whole``: the conversation is text to keep, and ends where its last message ends. ``where`` names the prompt in
    errors. Raises ValueError in one line for messages that are malformed or that the template refuses, and where there
    is no template.
    """
    if tokenizer is None:
        raise ValueError(f"{where} holds chat messages, which need a tokenizer: pass tokenizer=… or token ids")
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str) and len(template) > MOST_TEMPLATE:
        raise ValueError(f"{where}: the chat template has {len(template)} characters, at most {MOST_TEMPLATE}")
    if not template:
        raise ValueError(
            f"{where} holds chat messages, and the tokenizer has no chat template: set tokenizer.chat_template, "
            "or give the text itself"
        )
    plain = [_message(message, f"{where}, message {place}") for place, message in enumerate(messages)]
    is_continued = plain[-1]["role"] == "assistant" and not is_whole
    try:
        text = tokenizer.apply_chat_template(
            plain,
            tokenize=False,
            add_generation_prompt=not (is_continued or is_whole),
            continue_final_message=is_continued,
        )
    except Exception as error:  # a template is a stranger's program: it may divide by zero, or call itself forever
        reason = visible((str(error) or type(error).__name__).splitlines()[0])
        raise ValueError(f"{where}: the chat template does not take these messages: {reason:.200}") from error
    if len(text) > MOST_RENDERED:
        raise ValueError(
            f"{where}: its chat template makes {len(text)} characters of it, at most {MOST_RENDERED}; shorten it"
        )
    refuse_surrogates(text, f"{where}: the text of its chat template")
    for message in plain:  # a template that expects a string prints anything else as Python would
        if not isinstance(message.get("content"), str) and message.get("content") and str(message["content"]) in text:
            raise ValueError(f"{where}: the chat template takes content as a string only, not as a list of parts")
    return _with_one_bos(text, tokenizer)


def _message(message: Any, where: str) -> dict[str, Any]:
    """A message, checked. Its content may be missing only where it calls tools."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} is {message!r:.60}; expected {{'role': …, 'content': …}}")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{where} has no role: expected {{'role': 'user', 'content': …}}, got {dict(message)!r:.80}")
    content = message.get("content")
    if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
        raise ValueError(
            f"{where} has the content {content!r:.60}; expected a string (or a list that the template takes)"
        )
    return dict(message)


def _with_one_bos(text: str, tokenizer: Any) -> tuple[list[int], str]:
    """The ids of a template's text, and the text without the BOS at its start."""
    ids = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    bos, name = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "bos_token", None)
    if bos is None:
        return ids, text
    given = next((place for place, token in enumerate(ids) if token != bos), len(ids))
    is_added = list(tokenizer(text)["input_ids"][:1]) == [bos]  # the tokenizer's own, or the text's
    while name and text.startswith(name):
        text = text.removeprefix(name)
    return [bos] * (given > 0 or is_added) + ids[given:], text
