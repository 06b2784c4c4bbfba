"""Requests before they get a row: their prompts, each followed by its draft if it has one, computed in blocks.

Each distinct (prompt, draft) is computed once, however many responses start from it. A block may hold more prompts
than there are free rows, so that a single freed row does not cost a block of its own. The first token of a response is
sampled here, and so are the draft tokens that turn out right. A response that ends with them never gets a row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from .attention import prefill
from .requests import Requests, pad_right
from .speculative import TRIAL, Drafts, Guess, first_tokens
from .transcript import Transcript
from .transformer import Network
from .work import Work

_BLOCK_TOKENS = 512  # twice as many are 1 % faster, but take twice the memory beside the cache


@dataclass(frozen=True)
class Start:
    """What one or more requests start from: the index of a prompt in ``Requests.prompts``, and a draft."""

    prompt: int
    draft: tuple[int, ...]
    requests: list[int]


@dataclass(frozen=True)
class Ready:
    """R requests that wait for a row, and their keys and values [layers, 2, N, kv heads, P, width].

    The past of request i is sequence ``indices[i]`` of the block, in its first ``lengths[i]`` columns. ``tokens[i]`` is
    already sampled and goes into the network next. All but the block is known to the host.
    """

    block: Tensor
    requests: list[int]
    indices: list[int]
    lengths: list[int]
    tokens: list[int]

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, rows: slice) -> Ready:
        return Ready(self.block, self.requests[rows], self.indices[rows], self.lengths[rows], self.tokens[rows])


class Admission:
    """All requests, in the order in which they get rows: long prompts first, so that the last rows to run are short."""

    def __init__(
        self,
        network: Network,
        requests: Requests,
        transcript: Transcript,
        work: Work,
        drafts: Drafts | None,
        *,
        slots: int,
    ) -> None:
        self._network = network
        self._requests = requests
        self._transcript = transcript
        self._work = work
        self._drafts = drafts
        self._slots = slots
        self._computed_prompts: set[int] = set()
        self._unread = self._starts(range(len(requests)))
        self._ready: deque[Ready] = deque()

    def pop(self, num_free: int) -> Ready | None:
        """At least one and at most ``num_free`` requests, all of one block; None if no request is left."""
        while not self._ready:
            if not self._unread:
                return None
            self._read(self._choose(num_free))
        first = self._ready.popleft()
        if len(first) > num_free:
            self._ready.appendleft(first[num_free:])
        return first[:num_free]

    def _starts(self, requests: Iterable[int]) -> deque[Start]:
        starts: dict[tuple[int, tuple[int, ...]], Start] = {}
        for request in requests:
            prompt = self._requests.prompt_of[request]
            draft = self._drafts.of(request) if self._drafts is not None else ()
            starts.setdefault((prompt, draft), Start(prompt, draft, [])).requests.append(request)
        return deque(sorted(starts.values(), key=lambda start: -len(self._ids(start))))

    def _ids(self, start: Start) -> list[int]:
        return [*self._requests.prompts[start.prompt], *start.draft]

    def _choose(self, num_free: int) -> list[Start]:
        """The starts of the next block: enough for the free rows, or a few ahead, within the budget of tokens."""
        limit = max(1, _BLOCK_TOKENS // len(self._ids(self._unread[0])))
        if self._drafts is not None and not self._drafts.is_tried:
            limit = min(limit, TRIAL)
        chosen: list[Start] = []
        wanted = 0
        while self._unread and len(chosen) < limit and (wanted < num_free or len(chosen) < max(1, self._slots // 4)):
            chosen.append(self._unread.popleft())
            wanted += len(chosen[-1].requests)
        return chosen

    def _read(self, starts: list[Start]) -> None:
        """Compute a block, sample the first tokens from it, and keep the requests that are not finished."""
        started = time.perf_counter()
        ids = [self._ids(start) for start in starts]
        lengths, tails = [len(row) for row in ids], [len(start.draft) + 1 for start in starts]
        block, hidden = prefill(self._network, pad_right(ids, self._network.device), lengths, tails)
        self._work.count(len(ids) * max(lengths), 0)
        indices = [index for index, start in enumerate(starts) for _ in start.requests]
        places = [0, *accumulate(tails)]  # of the starts, in ``hidden``
        guesses = [
            Guess(request, start.draft, place)
            for start, place in zip(starts, places[:-1], strict=True)
            for request in start.requests
        ]
        accepted, tokens = self._first_tokens(guesses, hidden)
        is_finished = self._transcript.is_finished([guess.request for guess in guesses], accepted, tokens)
        ready = [
            (guess.request, index, lengths[index] - len(guess.draft) + right, token)
            for guess, index, right, token, is_over in zip(guesses, indices, accepted, tokens, is_finished, strict=True)
            if not is_over
        ]
        if ready:
            self._ready.append(Ready(block, *(list(column) for column in zip(*ready, strict=True))))
        self._count(starts, accepted)
        self._work.prefill_seconds += time.perf_counter() - started

    def _first_tokens(self, guesses: list[Guess], hidden: Tensor) -> tuple[list[int], list[int]]:
        """:func:`first_tokens` of all requests of a block, at most as many at once as there are rows."""
        accepted: list[int] = []
        tokens: list[int] = []
        for start in range(0, len(guesses), self._slots):
            part = first_tokens(self._network, self._transcript, guesses[start : start + self._slots], hidden)
            accepted += part[0]
            tokens += part[1]
        return accepted, tokens

    def _count(self, starts: list[Start], accepted: list[int]) -> None:
        """Count work and accepted tokens. Once drafts do not pay, requests that are not computed yet lose theirs.

        ``accepted``: tokens of each request, in the order of the starts.
        """
        rest = iter(accepted)
        furthest = sum(max(next(rest) for _ in start.requests) for start in starts)
        num_prompt_tokens = sum(len(self._requests.prompts[start.prompt]) for start in starts)
        self._work.count(0, num_prompt_tokens + furthest)
        if self._drafts is None:
            return
        computed, drafts = 0, 0
        for start in starts:
            if start.draft:  # a second draft for a prompt costs the prompt a second time
                drafts += 1
                computed += len(self._ids(start)) if start.prompt in self._computed_prompts else len(start.draft)
            self._computed_prompts.add(start.prompt)
        guessed, right = sum(len(start.draft) * len(start.requests) for start in starts), sum(accepted)
        self._drafts.count(drafts=drafts, computed=computed, guessed=guessed, accepted=right)
        self._work.draft_tokens += guessed
        self._work.accepted_tokens += right
        if not self._drafts.pays:
            self._unread = self._starts(request for start in self._unread for request in start.requests)
            self._drafts = None
