"""Sampling from any causal LM through its own forward and its own cache class.

Nothing is assumed about padding or caches. A probe (``abilities.py``) measures whether left padding, stepping with the
cache, dropping rows from it and joining rows to it give what the plain forward gives. Whatever does not is not used.
In the best case this is continuous batching, as in ``ppo/generation/engine.py``. If rows cannot join those that run,
groups of requests run from start to end. In the worst case prompts of equal length run together, and every step
computes the whole sequence again: slow, but right.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..requests import Requests, pad_left
from ..transcript import Transcript
from ..work import Work
from .abilities import abilities_of
from .cache import append_rows, cache_bytes, cut_left, select_rows
from .model import Features, LastPosition

_SHARE_THAT_WAITS = 8  # requests start once one slot in so many is free: a forward for one row costs a step


@dataclass
class Rows:
    """The rows that run together: ``requests`` int64 [N], ``ids`` int64 and ``mask`` bool [N, S], padded on the left.

    ``cache`` has all columns but the last. It is None if it must be filled from the ids. ``lengths``: how many real
    tokens each row has, known to the host.
    """

    requests: Tensor
    ids: Tensor
    mask: Tensor
    cache: Any
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.requests)


class HFEngine:
    """Runs requests through a model's own forward, at most ``slots`` at a time."""

    def __init__(self, model: nn.Module, *, slots: int) -> None:
        self._device = next(model.parameters()).device
        self._slots = slots
        self._model = LastPosition(model)
        self._abilities = abilities_of(model, self._model, self._device)

    def run(self, requests: Requests, transcript: Transcript) -> Work:
        """Sample every request to its end."""
        work = Work()
        waiting = self._waiting(requests)
        rows: Rows | None = None
        while True:
            while waiting and self._has_room(rows, len(waiting[0])):
                num_free = self._slots - (len(rows) if rows is not None else 0)
                rows = self._joined(rows, self._start(_take(waiting, num_free), requests, transcript, work))
            if rows is None:
                return work
            features = self._step(rows, work)
            rows = self._advance(rows, features, transcript)

    def _waiting(self, requests: Requests) -> deque[deque[int]]:
        """Queues of requests, long prompts first. Requests of one queue may start together."""

        def length(request: int) -> int:
            return len(requests.prompt(request))

        order = sorted(range(len(requests)), key=lambda request: (-length(request), requests.prompt_of[request]))
        if self._abilities.pads:
            return deque([deque(order)])
        return deque(deque(equally_long) for _, equally_long in groupby(order, key=length))

    def _has_room(self, rows: Rows | None, num_waiting: int) -> bool:
        """Whether to start requests now, because enough of them can start to be worth a forward."""
        if rows is None:
            return True
        enough = min(num_waiting, max(1, self._slots // _SHARE_THAT_WAITS))
        return self._abilities.joins and self._slots - len(rows) >= enough

    def _start(self, started: list[int], requests: Requests, transcript: Transcript, work: Work) -> Rows | None:
        """Compute the prompts and sample the first tokens; None if all responses end with them."""
        before = time.perf_counter()
        prompts = [requests.prompt(request) for request in started]
        ids, mask = pad_left(prompts, self._device)
        lengths = [len(prompt) for prompt in prompts]
        features = self._prefill(ids, mask, [requests.prompt_of[request] for request in started])
        work.count(ids.numel(), sum(lengths))
        work.prefill_seconds += time.perf_counter() - before
        rows = Rows(torch.tensor(started, device=self._device), ids, mask, features.cache, lengths)
        return self._advance(rows, features, transcript)

    def _prefill(self, ids: Tensor, mask: Tensor, prompt_of: list[int]) -> Features:
        """Compute each distinct prompt once if rows of the cache can be repeated, else every row."""
        if not self._abilities.selects:
            return self._model(ids, mask, use_cache=self._abilities.steps)
        place: dict[int, int] = {}
        repeat = [place.setdefault(prompt, len(place)) for prompt in prompt_of]
        first = [repeat.index(index) for index in range(len(place))]
        features = self._model(ids[first], mask[first], use_cache=True)
        if len(first) == len(repeat):
            return features
        select_rows(features.cache, torch.tensor(repeat, device=self._device))
        return Features(features.hidden[repeat], features.before_logits[repeat], features.cache)

    def _step(self, rows: Rows, work: Work) -> Features:
        """Compute one more token through the cache, or the whole sequence if there is no cache."""
        if rows.cache is None:
            features = self._model(rows.ids, rows.mask, use_cache=self._abilities.steps)
        else:
            features = self._model(rows.ids[:, -1:], rows.mask, rows.cache, use_cache=True)
        work.decode_steps += 1
        work.count(rows.ids.numel() if rows.cache is None else len(rows), len(rows))
        work.cache_bytes = max(work.cache_bytes, cache_bytes(features.cache))
        return features

    def _advance(self, rows: Rows, features: Features, transcript: Transcript) -> Rows | None:
        """Sample a token for each row. Returns the rows that go on, or None."""
        logits = self._model.output_layer(features.before_logits)
        tokens, is_finished = transcript.advance(rows.requests, logits, features.hidden)
        goes_on = [row for row, is_over in enumerate(is_finished) if not is_over]
        if not goes_on:
            return None
        cache, ids, mask, requests = features.cache, rows.ids, rows.mask, rows.requests
        lengths = [rows.lengths[row] for row in goes_on]
        if len(goes_on) < len(rows):
            alive = torch.tensor(goes_on, device=self._device)
            requests, ids, mask, tokens = requests[alive], ids[alive], mask[alive], tokens[alive]
            cache = self._with_rows(cache, alive)
            ids, mask = self._cut(ids, mask, cache, longest=max(lengths))
        ids = torch.cat([ids, tokens.unsqueeze(-1)], dim=1)
        return Rows(requests, ids, F.pad(mask, (0, 1), value=True), cache, [length + 1 for length in lengths])

    def _with_rows(self, cache: Any, alive: Tensor) -> Any:
        """The cache of the rows ``alive``; None if the model's cache cannot drop rows and must be filled again."""
        if cache is None or not self._abilities.selects:
            return None
        select_rows(cache, alive)
        return cache

    def _cut(self, ids: Tensor, mask: Tensor, cache: Any, *, longest: int) -> tuple[Tensor, Tensor]:
        """Ids and mask without the columns on the left in which no row has a token; the cache loses them too.

        ``longest``: the most real tokens of a row.
        """
        if not self._abilities.joins:
            return ids, mask
        columns = ids.shape[1] - longest
        if cache is not None:
            cut_left(cache, columns)
        return ids[:, columns:], mask[:, columns:]

    def _joined(self, rows: Rows | None, others: Rows | None) -> Rows | None:
        """Both groups of rows as one."""
        if rows is None:
            return others
        if others is None:
            return rows
        width = max(rows.ids.shape[1], others.ids.shape[1])
        if rows.cache is not None:
            append_rows(rows.cache, others.cache)
        ids, mask = (
            torch.cat([F.pad(part, (width - part.shape[1], 0)) for part in parts])
            for parts in ((rows.ids, others.ids), (rows.mask, others.mask))
        )
        lengths = rows.lengths + others.lengths
        return Rows(torch.cat([rows.requests, others.requests]), ids, mask, rows.cache, lengths)


def _take(waiting: deque[deque[int]], count: int) -> list[int]:
    """At most ``count`` requests of the first queue. If that empties the queue, it is removed."""
    queue = waiting[0]
    taken = [queue.popleft() for _ in range(min(count, len(queue)))]
    if not queue:
        waiting.popleft()
    return taken
