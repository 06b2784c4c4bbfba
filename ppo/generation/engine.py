"""Continuous batching over the fast decoders: there may be more requests than slots, and no row waits for another.

A round has four steps: put waiting requests into free rows, decode one position for every row, sample a token for
each, and drop the rows that have ended. ``admission.py`` has already sampled the first token of every request.

A round computes the rows that are in use. With ``static.py`` it always computes all rows, so that the step can be
compiled. The host keeps the rows' lengths itself. So it waits for the device once a round, to learn whether the logits
were sound and which rows have ended (``transcript.py``), and a few times for each block of prompts. That was counted on
a pretend device (``tests/accelerator/``); nothing here was ever run on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .admission import Admission, Ready
from .attention import DecodeAttention, Fed, decode
from .cache import KVCache, slots_that_fit, wider
from .requests import Requests
from .speculative import Drafts
from .static import StaticDecoder, Step, static_width
from .transcript import Transcript
from .transformer import Network
from .work import Work

_MULTIPLE = 8


class DecoderEngine:
    """Runs requests through a :class:`Network`, at most ``slots`` at a time; by ``static_step``, if one is given."""

    def __init__(
        self, network: Network, *, slots: int, drafts: Drafts | None = None, static_step: Step | None = None
    ) -> None:
        self._network = network
        self._slots = slots
        self._drafts = drafts
        self._static_step = static_step

    def run(self, requests: Requests, transcript: Transcript) -> Work:
        """Sample every request to its end."""
        work = Work(is_fast=True)
        step = self._static_step
        length = requests.max_length if step is None else static_width(requests.max_length)
        slots = slots_that_fit(self._network, self._slots, length)
        admission = Admission(self._network, requests, transcript, work, self._drafts, slots=slots)
        batch = Batch(self._network, slots, length, is_static=step is not None)
        work.cache_bytes = batch.cache.nbytes
        decoder = (
            Decoder(self._network, batch.cache, transcript)
            if step is None
            else StaticDecoder(self._network, batch.cache, transcript, step)
        )
        while True:
            while batch.num_free and batch.admit(admission.pop(batch.num_free)):
                # The popped block gets no name: a name would keep it in memory while the next block is computed.
                pass
            if batch.num_rows == 0:
                return work
            work.decode_steps += 1
            fed = batch.rows()
            work.count(len(fed.tokens), batch.num_rows)
            batch.keep(*decoder.advance(fed, batch.num_rows))


class Decoder:
    """Decodes one token for each row, however many rows there are."""

    def __init__(self, network: Network, cache: KVCache, transcript: Transcript) -> None:
        self._network = network
        self._attention = DecodeAttention(network, cache)
        self._transcript = transcript

    def advance(self, fed: Fed, num_rows: int) -> tuple[Tensor, list[bool]]:
        """Decode one step for M rows, of which the first ``num_rows`` are real.

        Returns their next tokens int64 [num_rows], and of each of their requests whether it is now finished.
        """
        hidden = decode(self._network, self._attention, fed)[:num_rows]
        return self._transcript.advance(fed.requests[:num_rows], self._network.output(hidden), hidden)


class Batch:
    """The rows that are decoded together. The first ``num_rows`` rows of the cache are in use."""

    def __init__(self, network: Network, slots: int, length: int, *, is_static: bool) -> None:
        self.cache = KVCache(network, rows=slots, capacity=length, widen=static_width if is_static else wider)
        self._slots = slots
        self._is_static = is_static
        self._lengths: list[int] = []  # of the rows in use; ``_positions`` are the same on the device
        self._requests = torch.zeros(slots, dtype=torch.long, device=network.device)
        self._tokens = torch.zeros(slots, dtype=torch.long, device=network.device)
        self._positions = torch.zeros(slots, dtype=torch.long, device=network.device)

    @property
    def num_rows(self) -> int:
        return len(self._lengths)

    @property
    def num_free(self) -> int:
        return self._slots - self.num_rows

    def admit(self, ready: Ready | None) -> bool:
        """Start requests in the first free rows; False if there are none to start."""
        if ready is None:
            return False
        longest = max(ready.lengths)
        self.cache.reserve(longest + 1, self.num_rows)
        self.cache.insert(self.num_rows, ready.block, ready.indices, longest)
        rows = slice(self.num_rows, self.num_rows + len(ready))
        numbers = torch.tensor([ready.requests, ready.lengths, ready.tokens], device=self._tokens.device)
        self._requests[rows], self._positions[rows], self._tokens[rows] = numbers
        self._lengths += ready.lengths
        return True

    def rows(self) -> Fed:
        """What the next step is fed; the cache now has room for it.

        After the rows in use come free ones. They are computed too, and nobody reads their results.
        """
        rows = self._slots if self._is_static else min(self._slots, _rounded(self.num_rows))
        self._positions[self.num_rows : rows] = self._positions[0]  # free rows must stay inside the cache
        self.cache.reserve(max(self._lengths) + 1, self.num_rows)
        places = self._lengths + [self._lengths[0]] * (rows - self.num_rows)
        return Fed(self._tokens[:rows], self._positions[:rows], self._requests[:rows], places)

    def keep(self, tokens: Tensor, is_finished: list[bool]) -> None:
        """Note the sampled tokens [M] and drop the finished rows. The last rows in use move to their places."""
        self._tokens[: self.num_rows] = tokens
        self._positions[: self.num_rows] += 1
        self._lengths = [length + 1 for length in self._lengths]
        for row in reversed([row for row, is_over in enumerate(is_finished) if is_over]):
            last, length = self.num_rows - 1, self._lengths.pop()
            if row != last:
                self.cache.move(last, row, length)
                self._lengths[row] = length
                for state in (self._requests, self._tokens, self._positions):
                    state[row] = state[last]


def _rounded(rows: int) -> int:
    """The next of 1, 2, 4, 8, 16, 24, 32, …: few shapes, because oneDNN builds a new kernel for every new one."""
    return -(-rows // _MULTIPLE) * _MULTIPLE if rows > _MULTIPLE // 2 else 1 << (rows - 1).bit_length()
