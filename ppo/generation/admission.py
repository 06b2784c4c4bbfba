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

import torch
from torch import Tensor

from .attention import prefill
from .requests import Requests, pad_right
from .speculative import TRIAL, Drafts, first_tokens, padded
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
    """Requests that wait for a row, int64 [R] each, and their keys and values [layers, 2, N, kv heads, P, width].

    The past of request i is sequence ``indices[i]`` of the block, in its first ``lengths[i]`` columns. ``tokens[i]`` is
    already sampled and goes into the network next.
    """

    block: Tensor
    requests: Tensor
    indices: Tensor
    lengths: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, rows: Tensor | slice) -> Ready:
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
        device = self._network.device
        ids = [self._ids(start) for start in starts]
        lengths = torch.tensor([len(row) for row in ids], device=device)
        drafts = padded([start.draft for start in starts], device)
        tails = torch.tensor([len(start.draft) + 1 for start in starts], device=device)
        block, hidden = prefill(self._network, pad_right(ids, device), lengths, tails)
        self._work.count(len(ids) * max(len(row) for row in ids), 0)
        places = tails.cumsum(dim=0) - tails
        who = [(request, index) for index, start in enumerate(starts) for request in start.requests]
        requests, indices = torch.tensor(who, device=device).unbind(dim=1)
        parts = [
            first_tokens(self._network, self._transcript, some, drafts[index], places[index], hidden)
            for some, index in zip(torch.split(requests, self._slots), torch.split(indices, self._slots), strict=True)
        ]
        accepted, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
        past = (lengths - tails + 1)[indices] + accepted
        alive = ~self._transcript.is_finished(requests, tokens, accepted)
        if bool(alive.any()):
            self._ready.append(Ready(block, requests, indices, past, tokens)[alive])
        self._count(starts, indices, accepted)
        self._work.prefill_seconds += time.perf_counter() - started

    def _count(self, starts: list[Start], indices: Tensor, accepted: Tensor) -> None:
        """Count work and accepted tokens. Once drafts do not pay, requests that are not computed yet lose theirs."""
        furthest = torch.zeros(len(starts), dtype=torch.long, device=accepted.device)
        furthest.scatter_reduce_(0, indices, accepted, "amax")
        num_prompt_tokens = sum(len(self._requests.prompts[start.prompt]) for start in starts)
        self._work.count(0, num_prompt_tokens + int(furthest.sum()))
        if self._drafts is None:
            return
        computed, drafts = 0, 0
        for start in starts:
            if start.draft:  # a second draft for a prompt costs the prompt a second time
                drafts += 1
                computed += len(self._ids(start)) if start.prompt in self._computed_prompts else len(start.draft)
            self._computed_prompts.add(start.prompt)
        guessed, right = sum(len(start.draft) * len(start.requests) for start in starts), int(accepted.sum())
        self._drafts.count(drafts=drafts, computed=computed, guessed=guessed, accepted=right)
        self._work.draft_tokens += guessed
        self._work.accepted_tokens += right
        if not self._drafts.pays:
            self._unread = self._starts(request for start in self._unread for request in start.requests)
            self._drafts = None
