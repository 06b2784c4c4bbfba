"""Prompts: they are read into token ids, and a run goes through them in a shuffled order.

This module knows tokenizers and rows, nothing about models or rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .types import Generation, Row, Sample


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt, its text, and the row it came from."""

    ids: list[int]
    text: str
    row: Row


def read_prompts(prompts: Sequence[Any], tokenizer: Any | None) -> list[Prompt]:
    """Read prompts: each is a string, a list of token ids, or a dict that holds either under "prompt".

    Raises ValueError for an empty list. Raises ValueError that names the index for an empty prompt, a dict without
    "prompt", a value of another type, and a string where there is no tokenizer.
    """
    if isinstance(prompts, (str, Mapping)) or len(prompts) == 0:
        raise ValueError(f"prompts={prompts!r:.60} must be a non-empty list of strings, token ids or dicts")
    return [_read_prompt(prompt, index, tokenizer) for index, prompt in enumerate(prompts)]


def _read_prompt(prompt: Any, index: int, tokenizer: Any | None) -> Prompt:
    row: Row = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
    if "prompt" not in row:
        raise ValueError(f"prompt {index} is a dict without the key 'prompt'; its keys: {sorted(row)}")
    content = row["prompt"]
    if isinstance(content, str):
        if tokenizer is None:
            raise ValueError(f"prompt {index} is a string, which needs a tokenizer: pass tokenizer=… or token ids")
        ids, text = list(tokenizer(content)["input_ids"]), content
    else:
        ids = _token_ids(content, index)
        text = tokenizer.decode(ids, skip_special_tokens=True) if tokenizer is not None else ""
    if not ids:
        raise ValueError(f"prompt {index} is empty: a policy needs at least one token to start from")
    return Prompt(ids, text, row)


def _token_ids(content: Any, index: int) -> list[int]:
    values = content.tolist() if hasattr(content, "tolist") else content
    is_list = isinstance(values, Sequence) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if not is_list:
        raise ValueError(f"prompt {index} is {content!r:.60}; expected a string or a list of token ids")
    return list(values)


def check_lengths(prompts: Sequence[Prompt], *, context: int | None, response_length: int, vocab_size: int) -> None:
    """Raise ValueError for a prompt that leaves too little room for a response or has an id outside the vocabulary."""
    for index, prompt in enumerate(prompts):
        if context is not None and len(prompt.ids) + response_length > context:
            raise ValueError(
                f"prompt {index} has {len(prompt.ids)} tokens; with response_length={response_length} that exceeds the "
                f"model's context of {context}: shorten the prompt or the response"
            )
        if min(prompt.ids) < 0 or max(prompt.ids) >= vocab_size:
            raise ValueError(f"prompt {index} holds a token id outside the model's vocabulary of {vocab_size}")


def make_samples(prompts: Sequence[Prompt], generation: Generation, tokenizer: Any | None) -> list[Sample]:
    """Each prompt with its response, as ids and as text without special tokens ("" without a tokenizer)."""
    lengths, ended = generation.lengths.tolist(), generation.is_ended.tolist()
    noted = generation.info if generation.info is not None else [None] * len(generation)
    samples = []
    for prompt, tokens, length, is_ended, info in zip(
        prompts, generation.tokens.tolist(), lengths, ended, noted, strict=True
    ):
        ids = tokens[:length]
        text = tokenizer.decode(ids, skip_special_tokens=True) if tokenizer is not None else ""
        samples.append(Sample(prompt.text, text, prompt.ids, ids, prompt.row, is_ended, info))
    return samples


class PromptStream:
    """An endless stream of prompt indices: each pass holds all ``num_prompts`` once, in a new random order.

    ``generator`` (CPU) decides the order. ``order``: the indices drawn but not yet taken; a checkpoint holds them.
    """

    def __init__(self, num_prompts: int, generator: torch.Generator) -> None:
        self._num_prompts = num_prompts
        self._generator = generator
        self.order: Tensor = torch.empty(0, dtype=torch.long)

    def restore(self, order: Tensor) -> None:
        """Continue with the order of a checkpoint, int64 indices."""
        self.order = order

    def take(self, count: int) -> list[int]:
        """The next ``count`` indices. When a pass ends, a new shuffled pass follows."""
        while len(self.order) < count:
            self.order = torch.cat([self.order, torch.randperm(self._num_prompts, generator=self._generator)])
        taken, self.order = self.order[:count].tolist(), self.order[count:]
        return [int(i) for i in taken]
