"""Lossless drafts: a guess at a response is checked in one pass over prompt and draft together.

At each token of the draft the ordinary draw is made: it inverts the cumulative distribution at the one uniform number
that belongs to this (request, token). A draft token is accepted if the draw gives the same token. At the first one that
differs the drawn token is kept, and decoding goes on after it.

Why this is exact: the distribution at token t depends on the tokens before it. As long as all of them were accepted,
they are the tokens that ordinary decoding would have sampled. So the same numbers give the same tokens with a draft and
without it, whatever the draft says, up to rounding, which in bfloat16 is coarse.

It is also rejection sampling with residual resampling. For a draft that puts all its mass on token d, that method
accepts d with probability min(1, p(d) / 1), and otherwise draws from p without d, renormalised. Here d is drawn with
probability p(d); given that it was not, the token has the same distribution as there. No rule can accept more often
without changing p. Greedy decoding is the case in which p has all its mass on one token.

A guess saves time only if it is right. :class:`Drafts` gives drafts up when too few tokens are accepted. It decides by
counts, never by a clock, so that the same call does the same arithmetic every time. This module knows nothing about
caches or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import Sampling
from .requests import Requests
from .sampling import read
from .transcript import Transcript
from .transformer import Network

TRIAL = 8  # drafts to check before judging whether they pay

_PRICE, _FULL = 0.65, 32
_PRICE_OF_DISORDER = 0.2
_AT_ONCE = 32  # positions; so many pass the output layer in little more time than a few


class Drafts:
    """One guess a request, for as long as guesses pay.

    ``slots`` sequences are decoded at the same time. A wrong guess costs the positions computed for it, and leaves
    rows of different lengths. The prices come from measurements with the lab model and with SmolLM2-135M's shape on
    one core (docs/performance.md). If 32 or more rows share a step, drafts pay from 85 % accepted tokens on, at one
    response a prompt. If fewer rows do, a position costs less in proportion, compared with decoding a token.
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
        """Whether enough drafts were checked to judge the others by them."""
        return self._num_tried >= TRIAL

    @property
    def pays(self) -> bool:
        """False once too few of the guessed tokens were accepted."""
        price = self._price * self._computed + _PRICE_OF_DISORDER * self._guessed
        return not self.is_tried or self._accepted >= price

    def of(self, request: int) -> tuple[int, ...]:
        return self._drafts[request] if self.pays else ()

    def count(self, *, drafts: int, computed: int, guessed: int, accepted: int) -> None:
        """Add so many checked ``drafts``, ``guessed`` and ``accepted`` tokens, and positions ``computed`` for them."""
        self._num_tried += drafts
        self._computed += computed
        self._guessed += guessed
        self._accepted += accepted


def read_drafts(drafts: Sequence[Any], requests: Requests, vocab_size: int) -> list[tuple[int, ...]]:
    """One draft a request, from one a request or one a prompt.

    Tokens that could never be accepted are cut off: an EOS and all after it, since nothing follows a sampled EOS, and
    the last token of a response. Raises ValueError for a wrong number of drafts and for ids that are no token ids.
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


@dataclass(frozen=True)
class Guess:
    """A request and its draft. ``place``: the index of the state from which its first token is sampled."""

    request: int
    draft: tuple[int, ...]
    place: int


def first_tokens(
    network: Network, transcript: Transcript, guesses: Sequence[Guess], hidden: Tensor
) -> tuple[list[int], list[int]]:
    """Sample the first tokens of requests: as many as each one's draft gets right, and one more.

    ``hidden`` [N, H] holds the state from which a request's first token is sampled, and behind it the states after each
    token of its draft. Returns the number of accepted tokens and the token after them, one of each a request. All
    requests advance together, a few positions at a time; at most as many positions as there are requests, or
    ``_AT_ONCE``, pass the output layer at once. A request whose draft was wrong drops out. The host waits for the
    device once each time.
    """
    accepted, last = [0] * len(guesses), [0] * len(guesses)
    alive = list(range(len(guesses)))
    step = 0
    while alive:
        stop = step + max(1, _AT_ONCE // len(alive))
        checked = [(row, t) for row in alive for t in range(step, min(stop, len(guesses[row].draft) + 1))]
        numbers = [(guesses[row].request, t, guesses[row].place + t) for row, t in checked]
        requests, steps, places = torch.tensor(numbers, device=hidden.device).unbind(dim=1)
        states = hidden[places]
        drawn, total = transcript.draw(requests, steps, network.output(states))
        known, over = [], set()
        for place, ((row, t), token) in enumerate(zip(checked, read(drawn.tokens, total), strict=True)):
            if row in over:
                continue
            known.append(place)
            if guesses[row].draft[t : t + 1] == (token,):
                accepted[row] += 1
            else:
                last[row] = token
                over.add(row)
        if len(known) < len(checked):
            index = torch.tensor(known, device=hidden.device)
            requests, steps, drawn, states = requests[index], steps[index], drawn[index], states[index]
        transcript.note(requests, steps, drawn, states)
        alive = [row for row in alive if row not in over]
        step = stop
    return accepted, last
