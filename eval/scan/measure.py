"""One teacher-forced pass over tokens of a text: of each scored token, what the scan needs of its distribution.

Nothing is generated. Greedy decoding recites a suffix exactly if each of its tokens is the first choice given the ones
before, and the probability that a sample is the suffix, p_z, is the product of theirs (Hayes et al. 2025). This module
knows token ids, and what a model makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ppo.config import Sampling
from ppo.lm.backbone import context_length, end_ids, evaluation_mode
from ppo.lm.distribution import next_token_logprobs, pick

from ..teacher import Forward, OutputLayer, forward_and_output, length_batches, scored_columns


@dataclass(frozen=True)
class Columns:
    """Of each scored token of a pass, [N]:

    right    bool: it is the first choice
    ends     bool: the first choice is another one, the end of a text
    logprobs float32: log p, nats, at temperature 1
    top_k    float32: the same under top-k, renormalised; -inf where the filter drops it
    """

    right: np.ndarray
    ends: np.ndarray
    logprobs: np.ndarray
    top_k: np.ndarray

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class Meter:
    """A model that is asked for the columns of tokens. ``bos``: what is put in front of a pass; None: nothing."""

    forward: Forward
    output_layer: OutputLayer
    bos: int | None
    ends: tuple[int, ...]
    top_k: int
    batch_tokens: int
    chunk_tokens: int = 512

    @torch.no_grad()
    def columns(self, passes: Sequence[Sequence[int]], firsts: Sequence[int]) -> Iterator[tuple[int, Columns]]:
        """(index, columns) of each pass, batch by batch. ``firsts``: its first scored token, counted in the pass.

        The order, and what shares a batch, depend on the lengths alone. ValueError for a first token that is scored
        without anything before it.
        """
        front = [] if self.bos is None else [self.bos]
        sequences = [[*front, *ids] for ids in passes]
        starts = [len(front) + first for first in firsts]
        if any(not 1 <= start < len(s) for s, start in zip(sequences, starts, strict=True)):
            raise ValueError("a pass needs a token to score, and something before it")
        of_tokens = partial(token_columns, ends=torch.tensor(self.ends, dtype=torch.long), top_k=self.top_k)
        for part in length_batches([len(s) for s in sequences], batch_tokens=self.batch_tokens):
            found = scored_columns(
                self.forward, self.output_layer, [sequences[i] for i in part], [starts[i] for i in part], of_tokens,
                chunk_tokens=self.chunk_tokens,
            )  # fmt: skip
            for i, columns in zip(part, found, strict=True):
                yield i, Columns(*(column.numpy() for column in columns))


@contextmanager
def metered(
    model: nn.Module, *, bos: int | None, length: int, top_k: int = 40, batch_tokens: int = 4096
) -> Iterator[Meter]:
    """The meter of a model, within the context in evaluation mode. ``length``: tokens of the longest pass, without BOS.

    ValueError for a pass that is longer than the model's context.
    """
    longest, limit = length + int(bos is not None), context_length(model)
    if limit is not None and longest > limit:
        raise ValueError(f"a pass of {longest} tokens exceeds the model's context of {limit}: shorten it")
    with evaluation_mode(model):
        forward, output_layer = forward_and_output(model, rows=max(batch_tokens, longest), length=longest)
        yield Meter(forward, output_layer, bos, tuple(end_ids(model)), top_k, batch_tokens)


def token_columns(logits: Tensor, tokens: Tensor, *, ends: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of :class:`Columns` for logits [N, V] and the true tokens [N].

    Tokens that tie with the last one of the top k stay, as everywhere (:mod:`ppo.lm.distribution`).
    """
    picked = pick(logits, tokens)
    best = logits.argmax(dim=-1)
    right, is_end = best == tokens, torch.isin(best, ends.to(best.device))
    logprobs = picked - torch.logsumexp(logits, dim=-1)
    if not 0 < top_k < logits.shape[-1]:
        return right, is_end & ~right, logprobs, logprobs
    likeliest = logits.topk(top_k + 1, dim=-1).values
    kept, floor = likeliest[:, :top_k], likeliest[:, top_k - 1]
    filtered = (picked - torch.logsumexp(kept, dim=-1)).masked_fill(picked < floor, -torch.inf)
    tied = (likeliest[:, top_k] == floor).nonzero().squeeze(-1)
    if len(tied):
        sampling = Sampling(response_length=1, top_k=top_k)
        filtered[tied] = pick(next_token_logprobs(logits[tied], sampling), tokens[tied])
    return right, is_end & ~right, logprobs, filtered
