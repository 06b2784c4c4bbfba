"""Lossless drafts: a guess at a response is checked in one pass over prompt and draft together.

A draft token is accepted where the ordinary draw, the inverse of the cumulative distribution at the one uniform number
that belongs to this (request, token), gives that very token. The first token that differs is kept in its place, and
decoding goes on behind it.

Why this is exact: the distribution at token t depends on the tokens before it, and as long as all of them were
accepted they are what ordinary decoding had sampled. So the same numbers give the same tokens with a draft and without
it, whatever the draft says: up to rounding, which in bfloat16 is coarse. It is also rejection sampling with residual
resampling: for a draft that puts all its mass on token d, that accepts d with probability min(1, p(d) / 1) and
otherwise draws from p without d, renormalised. Here d comes out with probability p(d), and given that it did not, the
token has just that distribution; no rule can accept more often without changing p. Greedy decoding is the case in which
p has all its mass on one token.

Guesses only save time where they are right: :class:`Drafts` gives them up when too few tokens are accepted. Counts
decide, never a clock, so that the same call does the same arithmetic every time. This module knows nothing about
caches or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import Sampling
from .requests import Requests
from .transcript import Transcript
from .transformer import Network

TRIAL = 8  # drafts that are checked before it is judged whether they pay

_PRICE, _FULL = 0.65, 32
_PRICE_OF_DISORDER = 0.2
_AT_ONCE = 32  # positions: that many pass the output layer in little more time than a few
_NOTHING = -1  # stands behind the end of a draft; no token equals it


class Drafts:
    """One guess a request, for as long as guesses pay.

    ``slots`` sequences are decoded side by side. A wrong guess costs the positions computed for it, and leaves rows of
    different lengths behind. The prices come from measurements with the lab model and with SmolLM2-135M's shape on one
    core (docs/performance.md): where 32 or more rows share a step, drafts pay from 85 % accepted tokens on, one
    response a prompt; where fewer do, a position costs less than decoding a token, in proportion.
    """

    def __init__(self, drafts: list[tuple[int, ...]], *, slots: int) -> None:
        self._drafts = drafts
        self._price = _PRICE * min(1.0, slots / _FULL)
        self._num_tried = 0
        self._computed = 0
        self._guessed = 0
        self._accepted = 0

    @property
    def is_tried(self) -> bool:
        """Whether enough drafts were checked to judge the others by them: a few are no sample."""
        return self._num_tried >= TRIAL

    @property
    def pays(self) -> bool:
        """False once too few of the guessed tokens were accepted."""
        price = self._price * self._computed + _PRICE_OF_DISORDER * self._guessed
        return not self.is_tried or self._accepted >= price

    def of(self, request: int) -> tuple[int, ...]:
        return self._drafts[request] if self.pays else ()

    def count(self, *, drafts: int, computed: int, guessed: int, accepted: int) -> None:
        """``guessed`` and ``accepted`` tokens of responses to so many ``drafts``; positions ``computed`` for it."""
        self._num_tried += drafts
        self._computed += computed
        self._guessed += guessed
        self._accepted += accepted


def read_drafts(drafts: Sequence[Any], requests: Requests, vocab_size: int) -> list[tuple[int, ...]]:
    """One draft a request from one a request or one a prompt; what could never be accepted is cut off.

    That is an EOS and all behind it, since it is sampled but never followed, and the last token of a response. Raises
    ValueError for a wrong number of drafts and for ids that are no token ids.
    """
    count, samples = len(requests), requests.sampling.num_samples
    read = [_tokens(draft, index, vocab_size) for index, draft in enumerate(drafts)]
    if len(read) not in (count, count // samples):
        raise ValueError(
            f"{len(read)} drafts for {count // samples} prompts x num_samples={samples}: give one a prompt or one a "
            "response; an empty one is no draft"
        )
    cut = [_cut(draft, requests.sampling) for draft in read]
    return cut if len(cut) == count else [draft for draft in cut for _ in range(samples)]


def _tokens(draft: Any, index: int, vocab_size: int) -> tuple[int, ...]:
    values = draft.tolist() if hasattr(draft, "tolist") else draft
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"draft {index} is {draft!r:.60}; expected a list of token ids")
    if wrong := [token for token in values if not isinstance(token, int) or not 0 <= token < vocab_size]:
        raise ValueError(f"draft {index} holds {wrong[0]!r}, which is no token id below {vocab_size}")
    return tuple(values)


def _cut(draft: tuple[int, ...], sampling: Sampling) -> tuple[int, ...]:
    ends = [place for place, token in enumerate(draft) if token in (sampling.eos_ids or ())]
    return draft[: min([sampling.response_length - 1, *ends])]


def padded(drafts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Drafts as one rectangle, int64 [R, D + 1]: behind each stands something that no token equals."""
    width = max(len(draft) for draft in drafts) + 1
    return torch.tensor([[*draft, *[_NOTHING] * (width - len(draft))] for draft in drafts], device=device)


def first_tokens(
    network: Network, transcript: Transcript, requests: Tensor, drafts: Tensor, places: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Sample each of the ``requests`` int64 [R] as far as its draft is right, and one token further; at least one.

    ``drafts``: see :func:`padded`. ``hidden`` [N, H] has at ``places[r]`` the state that request r's first token is
    sampled from, followed by those behind each token of its draft. Returns how many tokens were accepted, and the token
    behind them, int64 [R] each. All requests advance together, a few positions at a time, of which no more than R or
    ``_AT_ONCE`` pass the output layer at once; a request whose draft was wrong drops out.
    """
    accepted, last = torch.zeros_like(requests), torch.zeros_like(requests)
    lengths = (drafts != _NOTHING).sum(dim=1)
    alive = torch.arange(len(requests), device=hidden.device)
    step = 0
    while len(alive):
        steps = torch.arange(step, min(step + max(1, _AT_ONCE // len(alive)), drafts.shape[1]), device=hidden.device)
        row, column = (steps <= lengths[alive].unsqueeze(-1)).nonzero(as_tuple=True)
        request, states = requests[alive[row]], hidden[places[alive[row]] + steps[column]]
        drawn = transcript.draw(request, steps[column], network.output(states))
        tokens = torch.full((len(alive), len(steps)), _NOTHING, device=hidden.device)
        tokens[row, column] = drawn.tokens
        num_right = (tokens == drafts[alive][:, steps]).long().cumprod(dim=1).sum(dim=1)
        known = column <= num_right[row]
        transcript.note(request[known], steps[column[known]], drawn[known], states[known])
        accepted[alive] += num_right
        is_over = num_right < len(steps)
        last[alive[is_over]] = tokens[is_over, num_right[is_over]]
        alive = alive[~is_over]
        step += len(steps)
    return accepted, last
