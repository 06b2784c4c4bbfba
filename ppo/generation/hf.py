"""Sampling any causal LM through its own forward and its own cache class.

Nothing is assumed about padding or caches: a probe measures whether left padding, stepping with the cache, and dropping
rows from it give what the plain forward gives, and what does not is not used. In the worst case every step computes the
whole sequence again, prompts of equal length together: slow, but right. There is no continuous batching here: groups of
requests run from start to end; finished rows leave the batch, new ones wait for the next group.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, positions, vocabulary_size
from .requests import Requests, pad_left
from .transcript import Transcript
from .work import Work

_CACHE_NAMES = ("past_key_values", "cache_params")
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of the largest


@dataclass(frozen=True)
class Features:
    """The last position of each row: what a value head sees, what the output layer takes, and the model's cache."""

    hidden: Tensor
    before_logits: Tensor
    cache: Any


@dataclass(frozen=True)
class Abilities:
    """What a model was measured to do rightly."""

    pads: bool  # rows of different length side by side, padded on the left
    steps: bool  # one more token through the cache
    selects: bool  # rows can be dropped from the cache, doubled in it and reordered


class LastPosition:
    """A causal LM as a function from token ids to the features of the last position; [B, T, V] never exists."""

    def __init__(self, model: nn.Module) -> None:
        backbone = Backbone(model)
        inner: Any = backbone.model
        self.output_layer = backbone.output_layer
        self.vocab = vocabulary_size(inner)
        self._is_cut = backbone.is_cut_before_logits
        self._called: Any = inner.base_model if self._is_cut else inner
        parameters = inspect.signature(self._called.forward).parameters
        self._accepts_positions = "position_ids" in parameters
        self._first_position = backbone.first_position
        self._keeps_last = "logits_to_keep" in parameters
        self.cache_name = next((name for name in _CACHE_NAMES if name in parameters), None)

    def __call__(self, ids: Tensor, mask: Tensor, cache: Any = None, *, use_cache: bool = False) -> Features:
        """``ids`` int64 [N, S] are new; ``mask`` bool [N, cached + S] covers everything."""
        # A state-space model has no keys to mask: its mask is about the new tokens alone.
        seen = mask[:, -ids.shape[1] :] if self.cache_name == "cache_params" else mask
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": seen.long(), "use_cache": use_cache}
        if self._accepts_positions:
            arguments["position_ids"] = positions(mask)[:, -ids.shape[1] :] + self._first_position
        if cache is not None and self.cache_name is not None:
            arguments[self.cache_name] = cache
        if not self._is_cut:
            arguments["output_hidden_states"] = True
            if self._keeps_last:
                arguments["logits_to_keep"] = 1
        output = self._called(**arguments)
        new_cache = getattr(output, self.cache_name, None) if use_cache and self.cache_name is not None else None
        if self._is_cut:
            last = output.last_hidden_state[:, -1]
            return Features(last, last, new_cache)
        return Features(output.hidden_states[-1][:, -1], output.logits[:, -1], new_cache)


def measure_abilities(model: LastPosition, device: torch.device) -> Abilities:
    """Try padding, stepping and selecting on two short sequences and hold the result against the plain forward."""
    long, short = _probe(model.vocab, 7), _probe(model.vocab, 5)[::-1]
    alone = torch.cat([_plain(model, [row], device) for row in (long, short)])
    pads = _is_close(_plain(model, [long, short], device), alone)
    pair = [long, short] if pads else [long, long]
    expected = alone if pads else alone[[0, 0]]
    if not _returns_cache(model, device):
        return Abilities(pads=pads, steps=False, selects=False)
    steps = _is_close(_stepped(model, pair, [0, 1], device), expected)
    # Rows change places half way and one is doubled; where padding is out, equal rows must do.
    selects = steps and _has_row_selection(model, device)
    selects = selects and _is_close(_stepped(model, pair, [1, 0, 1], device), expected[[1, 0, 1]])
    return Abilities(pads=pads, steps=steps, selects=selects)


def _probe(vocab: int, length: int) -> list[int]:
    return [(index * 7919 + 3) % vocab for index in range(length)]


def _plain(model: LastPosition, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return model(*pad_left(rows, device)).before_logits


def _returns_cache(model: LastPosition, device: torch.device) -> bool:
    return model.cache_name is not None and model(*pad_left([[0]], device), use_cache=True).cache is not None


def _has_row_selection(model: LastPosition, device: torch.device) -> bool:
    layers = getattr(model(*pad_left([[0]], device), use_cache=True).cache, "layers", [])
    return len(layers) > 0 and all(hasattr(layer, "reorder_cache") for layer in layers)


def _stepped(model: LastPosition, pair: list[list[int]], order: list[int], device: torch.device) -> Tensor:
    """As ``_plain`` of the pair in ``order``, but the last two tokens come one by one through the cache."""
    ids, mask = pad_left(pair, device)
    features = model(ids[:, :-2], mask[:, :-2], use_cache=True)
    features = model(ids[:, -2:-1], mask[:, :-1], features.cache, use_cache=True)
    if order != [0, 1]:
        select_rows(features.cache, torch.tensor(order, device=device))
    return model(ids[order, -1:], mask[order], features.cache, use_cache=True).before_logits


def _is_close(actual: Tensor, expected: Tensor) -> bool:
    limit = _TOLERANCE.get(expected.dtype, 3e-2) * float(expected.abs().max())
    return float((actual.float() - expected.float()).abs().max()) <= limit


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep the given rows of a transformers cache, in the given order, repeated as often as named."""
    for layer in cache.layers:
        layer.reorder_cache(rows)  # meant for beams, it is index_select in every kind of layer


class HFEngine:
    """Runs requests through a model's own forward; see the module's text."""

    def __init__(self, model: nn.Module, *, slots: int) -> None:
        self._device = next(model.parameters()).device
        self._slots = slots
        self._model = LastPosition(model)
        self._abilities = measure_abilities(self._model, self._device)

    def run(self, requests: Requests, transcript: Transcript) -> Work:
        """Sample every request to its end, at most ``slots`` side by side."""
        work = Work()
        for group in self._groups(requests):
            self._run_group(group, requests, transcript, work)
        return work

    def _groups(self, requests: Requests) -> Iterator[list[int]]:
        """Requests that run together: neighbours in prompt length, or of equal length where padding is not safe."""

        def length(request: int) -> int:
            return len(requests.prompt(request))

        order = sorted(range(len(requests)), key=lambda request: (length(request), requests.prompt_of[request]))
        buckets = [order] if self._abilities.pads else [list(bucket) for _, bucket in groupby(order, key=length)]
        for bucket in buckets:
            for start in range(0, len(bucket), self._slots):
                yield bucket[start : start + self._slots]

    def _run_group(self, group: list[int], requests: Requests, transcript: Transcript, work: Work) -> None:
        ids, mask = pad_left([requests.prompt(request) for request in group], self._device)
        rows = torch.tensor(group, device=self._device)
        work.count(ids.numel(), int(mask.sum()))
        started = time.perf_counter()
        features = self._prefill(ids, mask, [requests.prompt_of[request] for request in group])
        work.prefill_seconds += time.perf_counter() - started
        while True:
            logits = self._model.output_layer(features.before_logits)
            tokens, is_finished = transcript.advance(rows, logits, features.hidden)
            alive = (~is_finished).nonzero().squeeze(-1)
            if len(alive) == 0:
                break
            cache = features.cache
            if len(alive) < len(rows):
                cache = self._drop_rows(cache, alive)
                rows, ids, mask, tokens = rows[alive], ids[alive], mask[alive], tokens[alive]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            ids = torch.cat([ids, tokens.unsqueeze(-1)], dim=1)
            features = self._step(ids, mask, cache)
            work.decode_steps += 1
            work.count(len(rows), len(rows))
            work.cache_bytes = max(work.cache_bytes, cache_bytes(features.cache))

    def _prefill(self, ids: Tensor, mask: Tensor, prompt_of: list[int]) -> Features:
        """Each distinct prompt once where the cache can be repeated, every row otherwise."""
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

    def _drop_rows(self, cache: Any, alive: Tensor) -> Any:
        """A cache for the given rows; None where the model's cache cannot drop rows, and must be filled again."""
        if cache is None or not self._abilities.selects:
            return None
        select_rows(cache, alive)
        return cache

    def _step(self, ids: Tensor, mask: Tensor, cache: Any) -> Features:
        """One more token through the cache, or the whole sequence where there is none."""
        if cache is None:
            return self._model(ids, mask, use_cache=self._abilities.steps)
        return self._model(ids[:, -1:], mask, cache, use_cache=True)


def cache_bytes(cache: Any) -> int:
    """The size of the keys and values that a transformers cache holds now; 0 where that cannot be told."""
    tensors = [getattr(layer, name, None) for layer in getattr(cache, "layers", []) for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
