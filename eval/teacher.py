"""One teacher-forced pass: statistics of every true token under a causal LM, given the true tokens before it.

They decide exact extraction, extraction strength, memorisation accuracy, (n, p)-discoverability, the membership scores
and the NLL, without any generation. Sequences are batched by similar length, and the output layer runs in chunks, so
that no [B, T, V] tensor exists. This module does not know what a passage is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ppo.config import Sampling
from ppo.generation.attention import prefill
from ppo.generation.decoders import Unsupported, bind
from ppo.generation.requests import pad_right
from ppo.generation.transformer import Network
from ppo.lm.backbone import Backbone, context_length, evaluation_mode
from ppo.lm.distribution import divisor, has_filters, next_token_logprobs, pick

MIN_VARIANCE = 1e-6

Forward = Callable[[list[Sequence[int]], list[int]], Tensor]
"""Sequences and the first scored token of each -> hidden states [N, H] before every scored token, in order."""
OutputLayer = Callable[[Tensor], Tensor]
"""Hidden states [N, H] -> logits [N, V]."""
OfTokens = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Logits [N, V] and true tokens [N] -> columns, each [N]."""


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of one sequence's tokens. Every array is [S], float32 unless noted, and index i is about token i.

    Entries before ``start`` were not scored and hold nan, False or -1. Token 0 has no context and is never scored.
    logprobs          log p(token), nats, at temperature 1
    is_right          bool: the token is the argmax (greedy decoding would choose it)
    ranks             int64: how many tokens are more likely; 0 for the argmax
    means, deviations mean and standard deviation of log p(v) over v ~ p, for min-k%++; variance at least 1e-6
    sampler_logprobs  log-prob under the given sampler: temperature, top-k and top-p renormalised; -inf if filtered out
    """

    start: int
    logprobs: np.ndarray
    is_right: np.ndarray
    ranks: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    sampler_logprobs: np.ndarray

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def nll(self) -> float:
        """Summed NLL of the scored tokens, nats."""
        return float(-self.logprobs[self.start :].astype(np.float64).sum())


@torch.no_grad()
def teacher_force(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    starts: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    batch_tokens: int = 8192,
    chunk_tokens: int = 512,
    has_moments: bool = True,
) -> list[TokenStatistics]:
    """Statistics of every sequence, in the given order.

    starts         first scored token of each sequence, at least 1; None: 1
    sampling       the sampler of ``sampler_logprobs``; None: the model's own distribution
    batch_tokens   most padded tokens in one forward pass
    chunk_tokens   tokens that pass the output layer at once
    has_moments    whether to compute ``means`` and ``deviations``; nan otherwise

    ValueError for a sequence without a token to score or longer than the model's context, for greedy ``sampling``,
    which has no probabilities, and for one with ``min_response_length``.
    """
    starts = [1] * len(sequences) if starts is None else starts
    for i, (sequence, first) in enumerate(zip(sequences, starts, strict=True)):
        if not 1 <= first < len(sequence):
            raise ValueError(f"sequence {i} has {len(sequence)} tokens and start {first}: need 1 <= start < length")
    limit = context_length(model)
    longest = max(map(len, sequences), default=0)
    if limit is not None and longest > limit:
        raise ValueError(f"the longest sequence has {longest} tokens, the model's context only {limit}: shorten it")
    if sampling is not None and sampling.is_greedy:
        raise ValueError("sampling.temperature=0 gives no probabilities: use a positive temperature")
    if sampling is not None and sampling.min_response_length:
        raise ValueError(
            f"sampling.min_response_length={sampling.min_response_length} bans EOS early in a response, but a sequence "
            "does not say where its response begins: set it to 0"
        )
    results: dict[int, TokenStatistics] = {}
    with evaluation_mode(model):
        most = min(batch_tokens, sum(map(len, sequences)))
        forward, output_layer = forward_and_output(model, rows=most, length=longest)
        of_tokens = partial(token_statistics, sampling=sampling, has_moments=has_moments)
        for part in length_batches([len(s) for s in sequences], batch_tokens=batch_tokens):
            chosen, first = [sequences[i] for i in part], [starts[i] for i in part]
            split = scored_columns(forward, output_layer, chosen, first, of_tokens, chunk_tokens=chunk_tokens)
            for i, columns_of_one in zip(part, split, strict=True):
                results[i] = _statistics(len(sequences[i]), starts[i], columns_of_one)
    return [results[i] for i in range(len(sequences))]


def scored_columns(
    forward: Forward,
    output_layer: OutputLayer,
    sequences: list[Sequence[int]],
    starts: list[int],
    of_tokens: OfTokens,
    *,
    chunk_tokens: int,
) -> list[tuple[Tensor, ...]]:
    """The columns of each sequence's scored tokens, on the CPU, from one forward pass over all of the sequences."""
    hidden = forward(sequences, starts)
    targets = torch.tensor(
        [token for s, start in zip(sequences, starts, strict=True) for token in s[start:]], device=hidden.device
    )
    parts = []
    for begin in range(0, hidden.shape[0], chunk_tokens):
        chunk = slice(begin, begin + chunk_tokens)
        parts.append(of_tokens(output_layer(hidden[chunk]).float(), targets[chunk]))
    counts = [len(s) - start for s, start in zip(sequences, starts, strict=True)]
    columns = [torch.cat(column).cpu().split(counts) for column in zip(*parts, strict=True)]
    return list(zip(*columns, strict=True))


def forward_and_output(model: nn.Module, *, rows: int, length: int) -> tuple[Forward, OutputLayer]:
    """The function that computes hidden states, and the one that turns them into logits.

    ``rows``: most padded tokens in one call. ``length``: of the longest sequence.

    If the model's family has a fast decoder that reproduces the model's logits, its prefill is used (twice as fast on a
    CPU). Otherwise the model's own forward pass is used.
    """
    try:
        network = bind(model, rows=max(1, rows), length=length)
    except Unsupported:
        network = None
    if network is not None:
        return partial(_fast_hidden, network), network.output
    backbone = Backbone(model)
    return partial(_own_hidden, backbone), backbone.output_layer


def _fast_hidden(network: Network, sequences: list[Sequence[int]], starts: list[int]) -> Tensor:
    """Hidden states by prefill. The last token of a sequence is not fed, because no token after it is scored."""
    device = network.device
    lengths = [len(s) - 1 for s in sequences]
    tails = [len(s) - start for s, start in zip(sequences, starts, strict=True)]
    return prefill(network, pad_right([s[:-1] for s in sequences], device), lengths, tails)[1]


def _own_hidden(backbone: Backbone, sequences: list[Sequence[int]], starts: list[int]) -> Tensor:
    device = next(backbone.model.parameters()).device
    ids = pad_right(sequences, device)
    place = torch.arange(ids.shape[1], device=device)
    mask = place < torch.tensor([[len(s)] for s in sequences], device=device)
    is_scored = mask & (place >= torch.tensor(starts, device=device).unsqueeze(1))
    return backbone(ids, mask).before_logits[:, :-1][is_scored[:, 1:]]


def length_batches(lengths: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
    """Indices in batches, longest first. A batch has at most ``batch_tokens`` padded tokens, or one sequence."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    parts = []
    while order:
        size = max(1, batch_tokens // lengths[order[0]])
        parts.append(order[:size])
        order = order[size:]
    return parts


def token_statistics(
    logits: Tensor, tokens: Tensor, sampling: Sampling | None, *, has_moments: bool = True
) -> tuple[Tensor, ...]:
    """The six columns of :class:`TokenStatistics` for logits [N, V] and tokens [N], each [N]."""
    picked = logits.gather(-1, tokens.unsqueeze(-1))
    is_right = logits.argmax(dim=-1) == tokens
    ranks = (logits > picked).sum(dim=-1)
    logprobs = torch.log_softmax(logits, dim=-1)
    true_logprobs = pick(logprobs, tokens)
    is_plain = sampling is None or (divisor(sampling) == 1 and not has_filters(sampling))
    sampler = true_logprobs if sampling is None or is_plain else pick(next_token_logprobs(logits, sampling), tokens)
    if not has_moments:
        missing = torch.full_like(true_logprobs, torch.nan)
        return true_logprobs, is_right, ranks, missing, missing, sampler
    probabilities = logprobs.exp()
    logprobs.clamp_(min=-1e4)  # p log p is 0 where p is 0, not nan
    means = torch.linalg.vecdot(probabilities, logprobs)
    squares = logprobs.sub_(means.unsqueeze(-1)).square_()
    variances = torch.linalg.vecdot(probabilities, squares)
    return true_logprobs, is_right, ranks, means, variances.clamp(min=MIN_VARIANCE).sqrt(), sampler


def _statistics(length: int, start: int, columns: Sequence[Tensor]) -> TokenStatistics:
    def placed(column: Tensor, filler: float) -> np.ndarray:
        values = column.numpy()
        return np.concatenate([np.full(start, filler, dtype=values.dtype), values])

    logprobs, is_right, ranks, means, deviations, sampler = columns
    result = TokenStatistics(
        start=start,
        logprobs=placed(logprobs, np.nan),
        is_right=placed(is_right, False),
        ranks=placed(ranks, -1),
        means=placed(means, np.nan),
        deviations=placed(deviations, np.nan),
        sampler_logprobs=placed(sampler, np.nan),
    )
    assert len(result) == length
    return result
