"""Continuous batching over the fast decoders: more requests than slots, no row waits for another.

A round is: admit waiting requests into free rows, sample one token for every row, drop what has ended, decode. Prompts
are prefilled in blocks of similar length, each distinct prompt once however many samples are drawn from it; a block may
hold prompts ahead of the rows that they will go to, so that one freed row does not cost a prefill of its own.

Nothing here is specific to a device, but only the CPU was ever run: on CUDA it is untried, and every round waits for
the device once or twice to learn which rows have ended.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import decode, prefill
from .cache import KVCache, slots_that_fit
from .requests import Requests, pad_right
from .transcript import Transcript
from .transformer import Network
from .work import Work

_PREFILL_TOKENS = 1024  # per block: enough for full speed, little enough to be small beside the cache
_MULTIPLE = 8  # rows of a step are rounded up to this: oneDNN builds a new kernel for every new shape


@dataclass
class Prompt:
    """A prefilled prompt: its place in a block, the state its responses start from, and who waits for it."""

    block: Tensor
    index: int
    hidden: Tensor
    length: int
    waiting: deque[int]


class DecoderEngine:
    """Runs requests through a :class:`Network`, at most ``slots`` side by side."""

    def __init__(self, network: Network, *, slots: int) -> None:
        self._network = network
        self._slots = slots

    def run(self, requests: Requests, transcript: Transcript) -> Work:
        """Sample every request to its end."""
        work = Work(is_fast=True)
        slots = slots_that_fit(self._network, self._slots, requests.max_length)
        batch = Batch(self._network, slots, requests.max_length)
        work.cache_bytes = batch.cache.nbytes
        queue = PromptQueue(self._network, requests, work, ahead=max(1, slots // 4))
        while True:
            while batch.num_free and (request := queue.pop(batch.num_free)) is not None:
                batch.admit(*request)
            if batch.num_rows == 0:
                return work
            logits = self._network.output(batch.hidden)
            tokens, is_finished = transcript.advance(batch.requests, logits, batch.hidden)
            batch.keep(tokens, is_finished)
            if batch.num_rows:
                work.decode_steps += 1
                work.count(batch.decode(), batch.num_rows)


class PromptQueue:
    """Requests in the order in which they are admitted, with their prompts prefilled a block at a time."""

    def __init__(self, network: Network, requests: Requests, work: Work, *, ahead: int) -> None:
        self._network = network
        self._prompts = requests.prompts
        self._work = work
        self._ahead = ahead
        self._waiting: dict[int, deque[int]] = {}
        for request, prompt in enumerate(requests.prompt_of):
            self._waiting.setdefault(prompt, deque()).append(request)
        # Long prompts first, so that the last rows to run are short ones.
        self._unread = deque(sorted(self._waiting, key=lambda prompt: -len(self._prompts[prompt])))
        self._ready: deque[Prompt] = deque()

    def pop(self, num_free: int) -> tuple[int, Prompt] | None:
        """The next request with its prefilled prompt; None when there are no more. ``num_free`` rows want one."""
        if not self._ready:
            if not self._unread:
                return None
            self._prefill(num_free)
        prompt = self._ready[0]
        request = prompt.waiting.popleft()
        if not prompt.waiting:
            self._ready.popleft()
        return request, prompt

    def _prefill(self, num_free: int) -> None:
        """Read as many prompts as free rows want, or a few ahead, within the budget of tokens."""
        started = time.perf_counter()
        width = len(self._prompts[self._unread[0]])
        limit = max(1, _PREFILL_TOKENS // width)
        chosen: list[int] = []
        wanted = 0
        while self._unread and len(chosen) < limit and (wanted < num_free or len(chosen) < self._ahead):
            chosen.append(self._unread.popleft())
            wanted += len(self._waiting[chosen[-1]])
        rows = [self._prompts[prompt] for prompt in chosen]
        lengths = [len(row) for row in rows]
        device = self._network.device
        block, hidden = prefill(self._network, pad_right(rows, device), torch.tensor(lengths, device=device))
        for index, prompt in enumerate(chosen):
            self._ready.append(Prompt(block, index, hidden[index], lengths[index], self._waiting.pop(prompt)))
        self._work.count(width * len(rows), sum(lengths))
        self._work.prefill_seconds += time.perf_counter() - started


class Batch:
    """The rows that are being decoded; those in use are the first ``num_rows`` of the cache."""

    def __init__(self, network: Network, slots: int, length: int) -> None:
        self._network = network
        self.cache = KVCache(network, rows=slots, columns=1, capacity=length)
        self._slots = slots
        self.num_rows = 0
        self._requests = torch.zeros(slots, dtype=torch.long, device=network.device)
        self._tokens = torch.zeros(slots, dtype=torch.long, device=network.device)
        self._lengths = torch.zeros(slots, dtype=torch.long, device=network.device)
        self._hidden = torch.zeros(slots, network.output.in_features, dtype=network.dtype, device=network.device)

    @property
    def num_free(self) -> int:
        return self._slots - self.num_rows

    @property
    def requests(self) -> Tensor:
        """Which request each row runs, int64 [M]."""
        return self._requests[: self.num_rows]

    @property
    def hidden(self) -> Tensor:
        """What each row's next token is sampled from, [M, H]."""
        return self._hidden[: self.num_rows]

    def admit(self, request: int, prompt: Prompt) -> None:
        """Start a request in the first free row."""
        row = self.num_rows
        self.cache.reserve(prompt.length + 1)
        self.cache.insert(row, prompt.block, prompt.index, prompt.length)
        self._requests[row] = request
        self._lengths[row] = prompt.length
        self._hidden[row] = prompt.hidden
        self.num_rows += 1

    def keep(self, tokens: Tensor, is_finished: Tensor) -> None:
        """Note the sampled tokens [M] and drop the rows that are finished; the last rows take their places."""
        self._tokens[: self.num_rows] = tokens
        if not bool(is_finished.any()):
            return
        lengths = self._lengths.tolist()
        for row in reversed(is_finished.nonzero().squeeze(-1).tolist()):
            self.num_rows -= 1
            last = self.num_rows
            if row != last:
                self.cache.move(last, row, lengths[last])
                lengths[row] = lengths[last]
                for state in (self._requests, self._tokens, self._lengths):
                    state[row] = state[last]
            self._lengths[last] = 0  # a free row that is computed along must stay inside the cache

    def decode(self) -> int:
        """Feed the sampled tokens; returns how many rows were computed, those in use and a few free ones."""
        rows = min(self._slots, -(-self.num_rows // _MULTIPLE) * _MULTIPLE)
        positions = self._lengths[:rows]
        self.cache.reserve(int(positions.max()) + 1)
        self._hidden[:rows] = decode(self._network, self.cache, self._tokens[:rows], positions)
        self._lengths[: self.num_rows] += 1
        return rows
