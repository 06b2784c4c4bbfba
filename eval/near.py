"""Texts that are the suffix but for a token or two: a lower bound of the probability that a sample is one of them.

A model that changes one token of a passage has not forgotten it, though it never writes it exactly. There are too many
such texts to add up. So the likeliest ones are searched for, best first, and their exact probabilities are added. They
are different texts, so that the sum is a lower bound whatever the search misses, and it grows with the search. Tokens
are replaced, not inserted or left out. This module knows token ids.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ppo.config import Sampling
from ppo.generation.requests import pad_right
from ppo.lm.backbone import Backbone, end_ids, evaluation_mode
from ppo.lm.distribution import next_token_logprobs

from .extraction import extraction_probability
from .leak import SAMPLES
from .protocols import Passage
from .teacher import length_batches

ALTERNATIVES = 4
"""So many of the likeliest other tokens are tried at each place."""
_FLOOR = -50.0  # nats


@dataclass(order=True)
class _Candidate:
    """A text that is not asked about yet. ``guess``: its log-probability if its tail is as likely as its parent's."""

    negative_guess: float
    text: list[int] = field(compare=False)
    first: int = field(compare=False)  # the place after the last replaced token
    replaced: int = field(compare=False)


def near_metrics(
    model: nn.Module,
    passages: Sequence[Passage],
    *,
    passes: int,
    most: int,
    sampling: Sampling,
    batch_tokens: int = 4096,
) -> list[dict[str, float]]:
    """``near_p`` of every passage, and ``near_leak_<k>``, 1 - (1 - near_p)^k, for each k of leak@k."""
    sums = near_probabilities(model, passages, passes=passes, most=most, sampling=sampling, batch_tokens=batch_tokens)
    rows = []
    for value in sums:
        log = math.log(value) if value > 0 else -math.inf
        rows.append({"near_p": value, **{f"near_leak_{k}": extraction_probability(log, k) for k in SAMPLES}})
    return rows


@torch.no_grad()
def near_probabilities(
    model: nn.Module,
    passages: Sequence[Passage],
    *,
    passes: int,
    most: int,
    sampling: Sampling,
    alternatives: int = ALTERNATIVES,
    batch_tokens: int = 4096,
) -> list[float]:
    """A lower bound of the probability that one sample differs from the suffix in at most ``most`` tokens, each [0, 1].

    ``passes`` texts of each passage go through the model, the suffix itself first. The next one is always the one that
    seems likeliest: a text that was asked about with one more token replaced, after its last replaced one, by one of
    the ``alternatives`` likeliest tokens there. A token that ends a text replaces none.
    """
    backbone, ends = Backbone(model), sorted(end_ids(model))
    queues = [[_Candidate(0.0, list(p.suffix), 0, 0)] for p in passages]
    sums, left = [0.0] * len(passages), [passes] * len(passages)
    width = max(1, min(8, passes // 8))  # texts of a passage in one round: the order is by a guess anyway
    with evaluation_mode(model):
        while any(queue and n for queue, n in zip(queues, left, strict=True)):
            chosen: list[tuple[int, _Candidate]] = []
            for i, queue in enumerate(queues):
                taken = [heapq.heappop(queue) for _ in range(min(len(queue), left[i], width))]
                left[i] -= len(taken)
                chosen += [(i, candidate) for candidate in taken]
            lengths = [len(passages[i].prefix) + len(c.text) for i, c in chosen]
            for part in length_batches(lengths, batch_tokens=batch_tokens):
                some = [chosen[k] for k in part]
                pairs = [(passages[i].prefix, c.text) for i, c in some]
                for (i, candidate), (own, others, tokens) in zip(
                    some, _ask(backbone, pairs, sampling, ends, alternatives), strict=True
                ):
                    sums[i] += math.exp(float(own.sum()))
                    if candidate.replaced < most:
                        for child in _children(candidate, own, others, tokens):
                            heapq.heappush(queues[i], child)
    return [min(1.0, value) for value in sums]


def _children(parent: _Candidate, own: Tensor, others: Tensor, tokens: Tensor) -> list[_Candidate]:
    """The texts with one more token replaced. own [n], others and tokens [n, A]: log-probs and ids of alternatives."""
    own = own.clamp(min=_FLOOR)  # another token may stand in the place of one that the sampler filters out
    found = []
    guesses, places = (own.sum() - own.unsqueeze(1) + others).tolist(), tokens.tolist()
    for t in range(parent.first, len(parent.text)):
        for guess, token in zip(guesses[t], places[t], strict=True):
            if guess > -math.inf:
                text = [*parent.text[:t], token, *parent.text[t + 1 :]]
                found.append(_Candidate(-guess, text, t + 1, parent.replaced + 1))
    return found


def _ask(
    backbone: Backbone,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    sampling: Sampling,
    ends: Sequence[int],
    alternatives: int,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each (prefix, text): log-probs of its tokens [n]; log-probs and ids of the likeliest others [n, A], float64.

    Under the sampler; -inf for a token that it filters out. A token that ends a text is no alternative.
    """
    device = next(backbone.model.parameters()).device
    rows = [[*prefix, *text] for prefix, text in pairs]
    ids = pad_right(rows, device)
    place = torch.arange(ids.shape[1], device=device)
    mask = place < torch.tensor([[len(row)] for row in rows], device=device)
    is_text = mask & (place >= torch.tensor([[len(prefix)] for prefix, _ in pairs], device=device))
    before = backbone(ids, mask).before_logits[:, :-1][is_text[:, 1:]]
    tokens, found = ids[is_text].unsqueeze(-1), []
    for hidden, chosen in zip(torch.split(before, 512), torch.split(tokens, 512), strict=True):
        logprobs = next_token_logprobs(backbone.output_layer(hidden).float(), sampling).double()
        own = logprobs.gather(-1, chosen).squeeze(-1)
        others = logprobs.scatter(-1, chosen, -torch.inf)
        others[:, list(ends)] = -torch.inf
        best = others.topk(min(alternatives, others.shape[-1]), dim=-1)
        found.append((own, best.values, best.indices))
    sizes = [len(text) for _, text in pairs]
    columns = [torch.split(torch.cat(column).cpu(), sizes) for column in zip(*found, strict=True)]
    return list(zip(*columns, strict=True))
