"""Requests: the arguments of ``generate`` (prompts, ids, when to stop), checked before any work is done.

A *request* is one response to be sampled. Equal prompts are kept once, so that each is prefilled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import Sampling
from ..lm.backbone import causal_lm, context_length, end_ids, vocabulary_size
from ..prompts import check_lengths, read_prompts
from .sampling import uniforms


@dataclass(frozen=True)
class Requests:
    """R requests. ``prompts`` are the distinct prompts; request r continues ``prompts[prompt_of[r]]``.

    ``uniforms`` float32 [R, T] are on the CPU. ``sampling.eos_ids`` is resolved, never None.
    """

    prompts: list[list[int]]
    prompt_of: list[int]
    uniforms: Tensor
    sampling: Sampling

    def __len__(self) -> int:
        return len(self.prompt_of)

    def prompt(self, request: int) -> list[int]:
        return self.prompts[self.prompt_of[request]]

    @property
    def max_length(self) -> int:
        """The most tokens, prompt and response together, that any request can have."""
        return max(len(prompt) for prompt in self.prompts) + self.sampling.response_length

    def padded_prompts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Every request's prompt, left-padded: ids int64 [R, P] (0 on padding) and mask bool [R, P]."""
        return pad_left([self.prompt(request) for request in range(len(self))], device)


def read_requests(
    model: Any,
    prompts: Sequence[Any],
    sampling: Sampling,
    *,
    tokenizer: Any | None,
    seed: int,
    request_ids: Sequence[int] | None,
) -> Requests:
    """The arguments of ``generate`` as requests, prompt-major. A mistake in them is a ValueError with its remedy."""
    causal_lm(model)
    read = read_prompts(prompts, tokenizer)
    vocab = vocabulary_size(model)
    check_lengths(read, context=context_length(model), response_length=sampling.response_length, vocab_size=vocab)
    count = len(read) * sampling.num_samples
    ids = list(request_ids) if request_ids is not None else list(range(count))
    if len(ids) != count:
        raise ValueError(
            f"{len(ids)} request_ids for {len(read)} prompts x num_samples={sampling.num_samples}: give {count} of them"
        )
    eos_ids = end_ids(model) if sampling.eos_ids is None else sampling.eos_ids
    outside = [i for i in eos_ids if not 0 <= i < vocab]
    if outside and sampling.eos_ids is not None:
        raise ValueError(f"eos_ids={sampling.eos_ids} holds {outside[0]}, outside the model's vocabulary of {vocab}")
    # A model's own config may name an EOS that its (resized) vocabulary lacks. It can never be sampled.
    sampling = replace(sampling, eos_ids=tuple(i for i in eos_ids if i not in outside))
    index: dict[tuple[int, ...], int] = {}
    prompt_of = [index.setdefault(tuple(p.ids), len(index)) for p in read for _ in range(sampling.num_samples)]
    numbers = uniforms(seed, ids, sampling.response_length)
    return Requests([list(prompt) for prompt in index], prompt_of, numbers, sampling)


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token lists as one left-padded rectangle: ids int64 [N, P] (0 on padding) and mask bool [N, P]."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device="cpu")
    mask = torch.zeros(len(rows), width, dtype=torch.bool, device="cpu")
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, device="cpu")
        mask[index, width - len(row) :] = True
    return ids.to(device), mask.to(device)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token lists as one right-padded rectangle: ids int64 [N, P] (0 on padding)."""
    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long, device="cpu")
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, device="cpu")
    return ids.to(device)
