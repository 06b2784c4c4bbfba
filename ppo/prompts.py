"""Prompts: they are read into token ids, and a run goes through them in a shuffled order.

This module knows tokenizers and rows, nothing about models or rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .io.chat import encode_chat, is_chat
from .io.listed import kind, listed
from .io.special import encode_text
from .io.surrogates import readable, refuse_surrogates
from .types import Generation, Row, Sample

MAX_ID = 2**31
"""No vocabulary is larger. Tokenizers end in an OverflowError at larger ids."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt, its text, and the row it came from."""

    ids: list[int]
    text: str
    row: Row


def read_prompts(prompts: Any, tokenizer: Any | None, *, name: str = "prompt") -> list[Prompt]:
    """Read prompts: each is a string, a list of token ids, chat messages, or a dict that holds one of them as "prompt".

    ``prompts``: a list, or anything else with a length and an order, such as a ``datasets.Dataset``. Chat messages,
    ``[{"role": …, "content": …}, …]``, go through the tokenizer's chat template (:mod:`ppo.io.chat`). ``name``: what
    errors call one of the prompts.

    Text is encoded with the special tokens that its tokenizer puts around it, but never with a second BOS, nor with an
    EOS at its end (:func:`ppo.io.special.encode_text`).

    Raises ValueError in one line for what is no such list (:mod:`ppo.io.listed`). Raises ValueError that names the
    index for an empty prompt, a dict without "prompt", ids that hold padding, a value of another type, half a character
    in a string of the row (:mod:`ppo.io.surrogates`), and a string or messages where there is no tokenizer.
    """
    items = listed(prompts, name=f"{name}s")
    return _readable([_read(prompt, f"{name} {index}", tokenizer) for index, prompt in enumerate(items)], f"{name}s")


def read_texts(texts: Any, tokenizer: Any | None) -> list[Prompt]:
    """The same for text that nothing is to follow: a conversation ends with its last message."""
    items = listed(texts, name="retain")
    found = [_read(text, f"retain text {index}", tokenizer, is_whole=True) for index, text in enumerate(items)]
    return _readable(found, "retain texts")


def _readable(prompts: list[Prompt], name: str) -> list[Prompt]:
    """The prompts, their texts without half characters, which a tokenizer may make of ids."""
    texts = readable([prompt.text for prompt in prompts], name=name)
    return [replace(prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]


def _read(prompt: Any, where: str, tokenizer: Any | None, *, is_whole: bool = False) -> Prompt:
    row: Row = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
    if "prompt" not in row:
        raise ValueError(f"{where} is a dict without the key 'prompt'; {_other_key(row)}")
    content = row["prompt"]
    refuse_surrogates({name: value for name, value in row.items() if isinstance(value, str)}, where)
    if isinstance(content, str):
        if tokenizer is None:
            raise ValueError(f"{where} is a string, which needs a tokenizer: pass tokenizer=… or token ids")
        ids, text = encode_text(content, tokenizer, is_whole=is_whole), content
    elif is_chat(content):
        refuse_surrogates(content, where)
        ids, text = encode_chat(content, tokenizer, where=where, is_whole=is_whole)
    else:
        ids = _token_ids(content, where)
        _check_padding(ids, where, tokenizer)
        text = tokenizer.decode(ids, skip_special_tokens=True) if tokenizer is not None else ""
    if not ids:
        raise ValueError(f"{where} is empty: a policy needs at least one token to start from")
    return Prompt(ids, text, row)


def _other_key(row: Row) -> str:
    """What to do about a dict that holds its prompt under another key."""
    if "role" in row and "content" in row:
        return "it is one chat message: a prompt is a list of messages, so put the conversation into a list, [messages]"
    if "messages" in row:
        return "rename 'messages', without the answer that is to be learned: {'prompt': messages}"
    if "input_ids" in row:
        return "give its ids without padding: {'prompt': ids}"
    return f"its keys: {sorted(map(str, row))}"


def _token_ids(content: Any, where: str) -> list[int]:
    if getattr(content, "ndim", 1) > 1:
        raise ValueError(f"{where} is {kind(content)}, whose short rows hold padding: give lists without padding")
    if isinstance(content, bytes | bytearray):
        raise ValueError(f"{where} is {content!r:.60}: give a string, such as .decode('utf-8') of it")
    if isinstance(content, Mapping) and "input_ids" in content:
        raise ValueError(f"{where} is {kind(content)}: give its input_ids, without padding")
    values = content.tolist() if hasattr(content, "tolist") else content
    if not isinstance(values, Sequence) or not all(isinstance(v, Integral) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{where} is {content!r:.60}; expected a string, a list of token ids or chat messages")
    ids = [int(value) for value in values]
    if bad := [i for i in ids if not 0 <= i < MAX_ID]:
        raise ValueError(f"{where} holds the token id {bad[0]}: ids are whole numbers from 0 to the vocabulary's size")
    return ids


def padding_id(tokenizer: Any | None) -> int | None:
    """The tokenizer's id for padding, or None: an id that is also BOS, EOS or UNK says nothing about padding."""
    pad = getattr(tokenizer, "pad_token_id", None)
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk")}
    return None if pad in others else pad


def _check_padding(ids: Sequence[int], where: str, tokenizer: Any | None) -> None:
    """Raise ValueError where padding stands at an end."""
    pad = padding_id(tokenizer)
    if ids and pad is not None and pad in (ids[0], ids[-1]):
        raise ValueError(f"{where} begins or ends with padding, the token id {pad}: give ids without padding")


def check_lengths(
    prompts: Sequence[Prompt], *, context: int | None, response_length: int, vocab_size: int, name: str = "prompt"
) -> None:
    """Raise ValueError for a prompt that leaves too little room for a response or has an id outside the vocabulary."""
    for index, prompt in enumerate(prompts):
        if context is not None and len(prompt.ids) + response_length > context:
            raise ValueError(
                f"{name} {index} has {len(prompt.ids)} tokens; with response_length={response_length} that exceeds the "
                f"model's context of {context}: shorten the prompt or the response"
            )
        if min(prompt.ids) < 0 or max(prompt.ids) >= vocab_size:
            raise ValueError(f"{name} {index} holds a token id outside the model's vocabulary of {vocab_size}")


def make_samples(prompts: Sequence[Prompt], generation: Generation, tokenizer: Any | None) -> list[Sample]:
    """Each prompt with its response, as ids and as text without special tokens ("" without a tokenizer).

    A sampler may have started from other ids than the prompt's; then the sample has those, and their text. With several
    actions at each forced state, the ids are all of them, and the text is that of the first at each state.
    """
    layout = generation.layout
    lengths, ended = layout.mask.sum(dim=1).tolist(), layout.is_ended.tolist()
    noted = generation.info if generation.info is not None else [None] * len(generation)
    width, sizes = generation.prompt_length, layout.prompt_mask.sum(dim=1).tolist()
    starts = [ids[width - size :] for ids, size in zip(generation.prompt_ids.tolist(), sizes, strict=True)]

    def text_of(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True) if tokenizer is not None else ""

    responses = [tokens[:length] for tokens, length in zip(generation.tokens.tolist(), lengths, strict=True)]
    asked = [p.text if start == p.ids else text_of(start) for p, start in zip(prompts, starts, strict=True)]
    asked = readable(asked, name="prompts")
    count = generation.actions_per_state
    texts = readable([text_of(ids[::count]) for ids in responses], name="responses")
    rows = [prompt.row for prompt in prompts]
    parts = zip(asked, texts, starts, responses, rows, ended, noted, strict=True)  # the fields of a sample in order
    return [Sample(*fields) for fields in parts]


class PromptStream:
    """An endless stream of prompt indices: each pass holds all ``num_prompts`` once, in a new random order.

    ``generator`` (CPU) decides the order. ``order``: the indices drawn but not yet taken; a checkpoint holds them.
    """

    def __init__(self, num_prompts: int, generator: torch.Generator) -> None:
        self._num_prompts = num_prompts
        self._generator = generator
        self.order: Tensor = torch.empty(0, dtype=torch.long, device="cpu")

    def restore(self, order: Tensor) -> None:
        """Continue with the order of a checkpoint, int64 indices."""
        self.order = order

    def take(self, count: int) -> list[int]:
        """The next ``count`` indices. When a pass ends, a new shuffled pass follows."""
        while len(self.order) < count:
            self.order = torch.cat(
                [self.order, torch.randperm(self._num_prompts, generator=self._generator, device="cpu")]
            )
        taken, self.order = self.order[:count].tolist(), self.order[count:]
        return [int(i) for i in taken]
