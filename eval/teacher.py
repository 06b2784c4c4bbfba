"""One teacher-forced pass: what a causal LM thinks of every true token, given the true tokens before it.

Its statistics decide exact extraction, extraction strength, memorisation accuracy, (n, p)-discoverability, the
membership scores and the NLL, without generating anything. Sequences go through in batches of like length and the
output layer in chunks: never a [B, T, V] tensor. This module does not know what a passage is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ppo.backbone import Backbone, context_length, evaluation_mode
from ppo.config import Sampling
from ppo.generation.sampling import filter_logits

MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of one sequence's tokens; every array is float32 or as said, [S], and index i is about token i.

    Entries before ``start`` were not asked for (token 0 has no context and never has a statistic): nan, False, -1.
    logprobs          log p(token), nats, at temperature 1
    is_right          bool: the token is the argmax (greedy decoding would choose it)
    ranks             int64: how many tokens are likelier; 0 for the argmax
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
) -> list[TokenStatistics]:
    """Statistics of every sequence, in the given order.

    starts         first token of each sequence that is scored, at least 1; None: 1
    sampling       the sampler of ``sampler_logprobs``; None: the model's own distribution. Greedy is no distribution
    batch_tokens   most padded tokens in one forward pass
    chunk_tokens   tokens that pass the output layer at once

    Raises ValueError for a sequence without a token to score.
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
    backbone, results = Backbone(model), {}
    with evaluation_mode(model):
        for part in length_batches([len(s) for s in sequences], batch_tokens=batch_tokens):
            scored = _score_batch(
                backbone, [sequences[i] for i in part], [starts[i] for i in part], sampling, chunk_tokens
            )
            results.update(zip(part, scored, strict=True))
    return [results[i] for i in range(len(sequences))]


def length_batches(lengths: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
    """Indices parted into batches, longest first, each at most ``batch_tokens`` padded tokens (or one sequence)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    parts = []
    while order:
        size = max(1, batch_tokens // lengths[order[0]])
        parts.append(order[:size])
        order = order[size:]
    return parts


def _score_batch(
    backbone: Backbone,
    sequences: list[Sequence[int]],
    starts: list[int],
    sampling: Sampling | None,
    chunk_tokens: int,
) -> list[TokenStatistics]:
    device = next(backbone.model.parameters()).device
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences], device=device)
    place = torch.arange(width, device=device)
    mask = place < torch.tensor([[len(s)] for s in sequences], device=device)
    is_scored = mask & (place >= torch.tensor(starts, device=device).unsqueeze(1))
    rows = backbone(ids, mask).before_logits[:, :-1][is_scored[:, 1:]]
    columns = _in_chunks(rows, ids[is_scored], backbone.output_layer, sampling, chunk_tokens)
    counts = is_scored.sum(dim=1).tolist()
    parts = zip(*(column.cpu().split(counts) for column in columns), strict=True)
    return [_statistics(len(s), start, part) for s, start, part in zip(sequences, starts, parts, strict=True)]


def _in_chunks(
    rows: Tensor,
    tokens: Tensor,
    output_layer: Callable[[Tensor], Tensor],
    sampling: Sampling | None,
    chunk_tokens: int,
) -> list[Tensor]:
    parts = []
    for start in range(0, rows.shape[0], chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        parts.append(token_statistics(output_layer(rows[chunk]).float(), tokens[chunk], sampling))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def token_statistics(logits: Tensor, tokens: Tensor, sampling: Sampling | None) -> tuple[Tensor, ...]:
    """The six columns of :class:`TokenStatistics` for logits [N, V] and tokens [N], each [N]."""
    picked = logits.gather(-1, tokens.unsqueeze(-1))
    is_right = logits.argmax(dim=-1) == tokens
    ranks = (logits > picked).sum(dim=-1)
    logprobs = torch.log_softmax(logits, dim=-1)
    true_logprobs = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    probabilities = logprobs.exp()
    logprobs = logprobs.clamp(min=-1e4)  # p log p is 0 where p is 0, not nan
    means = (probabilities * logprobs).sum(dim=-1)
    variances = (probabilities * (logprobs - means.unsqueeze(-1)) ** 2).sum(dim=-1)
    sampler = true_logprobs if sampling is None else _sampler_logprobs(logits, tokens, sampling)
    return true_logprobs, is_right, ranks, means, variances.clamp(min=MIN_VARIANCE).sqrt(), sampler


def _sampler_logprobs(logits: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
    filtered = filter_logits(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    return torch.log_softmax(filtered, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


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
