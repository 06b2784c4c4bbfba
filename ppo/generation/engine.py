"""Continuous batching over the fast decoders: more requests than slots, no row waits for another.

A round is: admit requests that wait into free rows, decode one position for every row, sample a token from each, drop
what has ended. Requests come with their first token already sampled, by ``admission.py``.

Nothing here is specific to a device, but only the CPU was ever run: on CUDA it is untried, and every round waits for
the device once or twice to learn which rows have ended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .admission import Admission, Ready
from .attention import DecodeAttention, decode
from .cache import KVCache, slots_that_fit
from .requests import Requests
from .speculative import Drafts
from .transcript import Transcript
from .transformer import Network
from .work import Work

_MULTIPLE = 8


class DecoderEngine:
    """Runs requests through a :class:`Network`, at most ``slots`` side by side."""

    def __init__(self, network: Network, *, slots: int, drafts: Drafts | None = None) -> None:
        self._network = network
        self._slots = slots
        self._drafts = drafts

    def run(self, requests: Requests, transcript: Transcript) -> Work:
        """Sample every request to its end."""
        work = Work(is_fast=True)
        slots = slots_that_fit(self._network, self._slots, requests.max_length)
        admission = Admission(self._network, requests, transcript, work, self._drafts, slots=slots)
        batch = Batch(self._network, slots, requests.max_length)
        work.cache_bytes = batch.cache.nbytes
        while True:
            while batch.num_free and batch.admit(admission.pop(batch.num_free)):
                pass  # a name for what was popped would keep its block alive while the next one is computed
            if batch.num_rows == 0:
                return work
            work.decode_steps += 1
            hidden = batch.decode(work)
            tokens, is_finished = transcript.advance(batch.requests, self._network.output(hidden), hidden)
            batch.keep(tokens, is_finished)


class Batch:
    """The rows that are being decoded; those in use are the first ``num_rows`` of the cache."""

    def __init__(self, network: Network, slots: int, length: int) -> None:
        self._network = network
        self.cache = KVCache(network, rows=slots, capacity=length)
        self._attention = DecodeAttention(network, self.cache)
        self._slots = slots
        self.num_rows = 0
        self._requests = torch.zeros(slots, dtype=torch.long, device=network.device)
        self._tokens = torch.zeros(slots, dtype=torch.long, device=network.device)
        self._lengths = torch.zeros(slots, dtype=torch.long, device=network.device)

    @property
    def num_free(self) -> int:
        return self._slots - self.num_rows

    @property
    def requests(self) -> Tensor:
        """Which request each row runs, int64 [M]."""
        return self._requests[: self.num_rows]

    def admit(self, ready: Ready | None) -> bool:
        """Start requests in the first free rows; False where there are none to start."""
        if ready is None:
            return False
        longest = int(ready.lengths.max())
        self.cache.reserve(longest + 1, self.num_rows)
        self.cache.insert(self.num_rows, ready.block, ready.indices.tolist(), longest)
        rows = slice(self.num_rows, self.num_rows + len(ready))
        self._requests[rows] = ready.requests
        self._lengths[rows] = ready.lengths
        self._tokens[rows] = ready.tokens
        self.num_rows += len(ready)
        return True

    def decode(self, work: Work) -> Tensor:
        """Feed the last tokens; returns the hidden states [M, H] that the next ones are sampled from."""
        rows = min(self._slots, _rounded(self.num_rows))
        self._lengths[self.num_rows : rows] = self._lengths[0]  # free rows, computed along, must stay inside the cache
        positions = self._lengths[:rows]
        self.cache.reserve(int(positions.max()) + 1, self.num_rows)
        hidden = decode(self._network, self._attention, self._tokens[:rows], positions)
        self._lengths[: self.num_rows] += 1
        work.count(rows, self.num_rows)
        return hidden[: self.num_rows]

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


def _rounded(rows: int) -> int:
    """1, 2, 4, 8, 16, 24, 32, …: few numbers of rows, because oneDNN builds a new kernel for every new shape."""
    return -(-rows // _MULTIPLE) * _MULTIPLE if rows > _MULTIPLE // 2 else 1 << (rows - 1).bit_length()
