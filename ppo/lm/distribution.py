"""The one distribution over the next token: sampling, training, reference, trace, rewards and evaluation all ask here.

A model's logits become that distribution in four steps, always in this order:

1. EOS has no chance before a response holds ``min_response_length`` tokens.
2. The temperature divides the logits. Temperature 0 is greedy: the model's own distribution stays.
3. Top-k drops tokens, then top-p. A token that was sampled may be kept in any case. Or the tokens are kept that an
   earlier policy kept.
4. Softmax.

:func:`next_token_logprobs` takes all four over whole rows of logits. Two modules fuse steps for speed, and take the
parts from here: the draw divides and exponentiates in one step (:mod:`ppo.generation.sampling`), and the tiles never
hold a whole row (:mod:`ppo.lm.tiled_logprobs`). This module knows no model, no cache and no random number.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..config import Sampling

_NUCLEUS_GUESS = 128  # most nuclei are smaller, and a partial sort is far cheaper than a whole one
_SORTED_WHOLE = 4096  # below this many tokens a whole sort is as cheap


def next_token_logprobs(
    logits: Tensor,
    sampling: Sampling,
    *,
    is_early: Tensor | None = None,
    keep: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Log-probs (nats) of all tokens, [N, V], from a model's logits [N, V]; -inf where a token has no chance.

    No EOS may be drawn in the rows where ``is_early`` bool [N] is True (:func:`early_tokens`); None means no row.
    ``sampling.eos_ids`` must be given if ``is_early`` is. ``keep`` int64 [N] names one token a row that no filter
    drops: the sampled one, which the filter of a later policy might drop. ``kept`` bool [N, V] takes the place of the
    filters: the tokens that an earlier policy left. The result is differentiable with respect to ``logits``, which are
    not changed.
    """
    return torch.log_softmax(next_token_logits(logits, sampling, is_early=is_early, keep=keep, kept=kept), dim=-1)


def next_token_logits(
    logits: Tensor,
    sampling: Sampling,
    *,
    is_early: Tensor | None = None,
    keep: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """The first three steps of :func:`next_token_logprobs`, with the same arguments."""
    if is_early is not None and bans_eos(sampling):
        logits = ban_early_eos_(logits.clone(), is_early, sampling.eos_ids or ())
    if kept is not None:
        return (logits / divisor(sampling)).masked_fill(~kept, -torch.inf)
    return filter_logits(logits, sampling.temperature, sampling.top_k, sampling.top_p, keep=keep)


def pick(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Log-prob of one token a row: log-probs [N, V], tokens int64 [N] -> [N]."""
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """Entropy of each row in nats: log-probs [N, V] (may hold -inf) -> [N]."""
    # A dropped token has p = 0 and log p = -inf; 0 * -inf is nan, its limit is 0.
    finite = logprobs.masked_fill(logprobs == -torch.inf, 0.0)
    return -(logprobs.exp() * finite).sum(dim=-1)


def early_steps(steps: Tensor, sampling: Sampling) -> Tensor:
    """Which tokens may not be EOS, bool; ``steps`` int64 is how many tokens of its response stand before each."""
    return steps < sampling.min_response_length


def early_tokens(mask: Tensor, action_mask: Tensor, sampling: Sampling) -> Tensor:
    """Which actions may not be EOS, bool [N]; ``action_mask`` bool [B, T] has N of them, part of ``mask`` [B, T].

    All real tokens count, those of an environment too. Example: with ``min_response_length`` 2, rows of 3 and 1 tokens
    give True True False, True.
    """
    return early_steps(mask.cumsum(dim=1)[action_mask] - 1, sampling)


def ban_early_eos_(
    logits: Tensor, is_early: Tensor, eos_ids: Iterable[int], *, no_chance: float = -torch.inf
) -> Tensor:
    """Give EOS the logit ``no_chance`` in the rows where ``is_early`` bool [N] is True; logits [N, V] are changed.

    Ids outside [0, V) are passed over: a tile of the vocabulary has room for some of them only. It works in place
    because a copy costs far more than the ban: 64 rows of 50,257 logits take 7 µs in place and 2 ms with a copy (one
    thread of a CPU).
    """
    for column in eos_ids:
        if 0 <= column < logits.shape[-1]:
            logits[:, column].masked_fill_(is_early, no_chance)
    return logits


def bans_eos(sampling: Sampling) -> bool:
    """Whether EOS is banned anywhere; :func:`early_steps` says where."""
    return sampling.min_response_length > 0 and bool(sampling.eos_ids)


def divisor(sampling: Sampling) -> float:
    """What divides the logits: the temperature, but 1 for greedy decoding."""
    return 1.0 if sampling.is_greedy else sampling.temperature


def has_filters(sampling: Sampling) -> bool:
    """Whether top-k or top-p may drop tokens; greedy decoding ignores both."""
    return not sampling.is_greedy and (sampling.top_k > 0 or sampling.top_p < 1)


def filter_logits(logits: Tensor, temperature: float, top_k: int, top_p: float, keep: Tensor | None = None) -> Tensor:
    """Logits [N, V] of the sampling distribution: divided by the temperature, -inf outside top-k, then top-p.

    Top-p acts on what top-k left, renormalised: it keeps the likeliest tokens until their sum reaches ``top_p``.
    Tokens that tie with the last one kept stay too. ``keep`` int64 [N] names one token a row that stays in any case.
    Temperature 0 is greedy: the model's own distribution comes back. The result is differentiable with respect to
    ``logits``, which are not changed. If there is nothing to do, ``logits`` themselves are returned.
    """
    if temperature == 0:
        return logits
    scaled = logits / temperature if temperature != 1 else logits
    has_top_k = 0 < top_k < logits.shape[-1]
    if not has_top_k and top_p >= 1:
        return scaled
    with torch.no_grad():
        floor = _filter_floor(scaled.detach(), top_k if has_top_k else 0, top_p)
        is_dropped = scaled < floor
        if keep is not None:
            is_dropped.scatter_(-1, keep.unsqueeze(-1), False)
    return scaled.masked_fill(is_dropped, -torch.inf)


def _filter_floor(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """The smallest logit that stays, [N, 1]."""
    if not top_k:
        return _nucleus_floor(scaled, torch.logsumexp(scaled, dim=-1, keepdim=True), top_p)
    floor = scaled.topk(top_k, dim=-1).values[:, -1:]
    if top_p >= 1:
        return floor
    kept = scaled.masked_fill(scaled < floor, -torch.inf)
    # Rounding may leave the sum of all kept tokens below top_p. Then the nucleus ends at -inf, but top-k still holds.
    return torch.maximum(floor, _nucleus_floor(kept, torch.logsumexp(kept, dim=-1, keepdim=True), top_p))


def _nucleus_floor(scaled: Tensor, log_total: Tensor, top_p: float) -> Tensor:
    """The logit of the nucleus's last token, [N, 1]. A token is in it if the likelier ones hold less than ``top_p``."""
    if scaled.shape[-1] <= _SORTED_WHOLE or torch.compiler.is_compiling():  # no shape in a graph may depend on values
        return _last_inside(_descending(scaled), log_total, top_p)[0]
    floor, is_cut_short = _last_inside(scaled.topk(_NUCLEUS_GUESS, dim=-1).values, log_total, top_p)
    rows = is_cut_short.nonzero().squeeze(-1)
    if len(rows):
        floor[rows] = _last_inside(_descending(scaled[rows]), log_total[rows], top_p)[0]
    return floor


def _last_inside(likeliest: Tensor, log_total: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The last logit inside the nucleus, [N, 1], and whether the nucleus may go on after ``likeliest``, bool [N].

    ``likeliest`` are the largest logits of each row, descending.
    """
    chances = (likeliest - log_total).exp()
    is_inside = chances.cumsum(dim=-1) - chances < top_p
    # The cumulative sum never falls, so the nucleus is a prefix; its first token is always in it.
    last = is_inside.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return likeliest.gather(-1, last), is_inside[:, -1]


def _descending(values: Tensor) -> Tensor:
    """Every row sorted. On the CPU numpy does it: its sort is vectorised and several times faster."""
    is_for_numpy = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    if not is_for_numpy or torch.compiler.is_compiling():
        return values.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)
