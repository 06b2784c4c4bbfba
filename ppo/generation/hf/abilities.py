"""What a model can do with padding and with its cache, measured on two short sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...lm.backbone import causal_lm
from ..requests import pad_left
from .cache import append_rows, cut_left, has_all_columns, select_rows
from .model import LastPosition

# Largest difference from the plain forward, relative to the largest logit.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_LONGEST, _SHORTEST = 7, 5  # tokens of a probe


@dataclass(frozen=True)
class Abilities:
    """What a model can do; each field was measured."""

    pads: bool  # rows of different length side by side, padded on the left
    steps: bool  # one more token through the cache
    selects: bool  # the cache's rows can be dropped, repeated and reordered
    joins: bool  # rows that start later can join those that run, and columns that no row needs can be cut


_MEASURED: WeakKeyDictionary[nn.Module, tuple[object, Abilities]] = WeakKeyDictionary()  # a memo, to save time


def abilities_of(model: nn.Module, last: LastPosition, device: torch.device) -> Abilities:
    """The abilities of a model. They are measured anew once its weights, modules, config, device or precision changed.

    Weights matter: while an output layer or a layer's last product is 0, as some models begin, nothing shows a mistake.
    """
    now = _fingerprint(causal_lm(model), device)
    known = _MEASURED.get(model)
    if known is None or known[0] != now:
        known = _MEASURED[model] = now, measure_abilities(last, device)
    return known[1]


def _fingerprint(model: Any, device: torch.device) -> object:
    """What the abilities depend on. A tensor's version counts the changes made to it in place."""
    tensors = [*model.parameters(), *model.buffers()]
    weights = tuple((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors)
    modules = tuple(
        (type(m), *m._forward_hooks, *m._forward_pre_hooks, id(vars(m).get("forward"))) for m in model.modules()
    )
    how = getattr(model.config, "_attn_implementation", None)
    return device, model.config.to_json_string(use_diff=False), how, weights, modules


def measure_abilities(model: LastPosition, device: torch.device) -> Abilities:
    """Try padding, stepping, selecting and joining, and compare the results with the plain forward.

    What ends in an error cannot be done either: a cache of the model's own may lack what the trial asks for.
    A model has no abilities if its context is too short to try them, or if what it computes for a token does not stay
    right (``is_lasting``).
    """
    longest = _LONGEST if model.context is None else min(_LONGEST, model.context)
    if longest < _SHORTEST or not model.is_lasting:
        return Abilities(pads=False, steps=False, selects=False, joins=False)
    long, short = _probe(model.vocab, longest), _probe(model.vocab, longest - 2)[::-1]
    alone = torch.cat([_plain(model, [row], device) for row in (long, short)])
    pads = _succeeds(lambda: _is_close(_plain(model, [long, short], device), alone))
    pair = [long, short] if pads else [long, long]
    expected = alone if pads else alone[[0, 0]]
    if not _succeeds(lambda: _returns_cache(model, device)):
        return Abilities(pads=pads, steps=False, selects=False, joins=pads)
    steps = _succeeds(lambda: _is_close(_stepped(model, pair, [0, 1], device), expected))
    # Half way the rows change places and one is repeated. A model that cannot pad gets two equal rows.
    selects = steps and _has_row_selection(model, device)
    selects = selects and _succeeds(lambda: _is_close(_stepped(model, pair, [1, 0, 1], device), expected[[1, 0, 1]]))
    joins = pads and (selects or not steps)
    if joins and steps:
        joins = _succeeds(lambda: _joins(model, long, short, device))
    return Abilities(pads=pads, steps=steps, selects=selects, joins=joins)


def _succeeds(trial: Callable[[], bool]) -> bool:
    """What a trial found; False if it ended in an error of whatever kind."""
    try:
        return trial()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False


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
    """As ``_plain`` of the pair in ``order``, but the last two tokens are fed one by one, through the cache."""
    ids, mask = pad_left(pair, device)
    features = model(ids[:, :-2], mask[:, :-2], use_cache=True)
    features = model(ids[:, -2:-1], mask[:, :-1], features.cache, use_cache=True)
    if order != [0, 1]:
        select_rows(features.cache, torch.tensor(order, device=device))
    return model(ids[order, -1:], mask[order], features.cache, use_cache=True).before_logits


def _joins(model: LastPosition, long: list[int], short: list[int], device: torch.device) -> bool:
    """Whether joining works: the short row joins the long one, both step, the long one leaves, the short one steps."""
    ids, mask = pad_left([long, short], device)
    cache = model(*pad_left([long[:-2]], device), use_cache=True).cache
    other = model(*pad_left([short[:-2]], device), use_cache=True).cache
    if not (has_all_columns(cache) and has_all_columns(other)):
        return False
    append_rows(cache, other)
    both = model(ids[:, -2:-1], mask[:, :-1], cache, use_cache=True)
    if not _is_close(both.before_logits, _plain(model, [long[:-1], short[:-1]], device)):
        return False
    select_rows(both.cache, torch.tensor([1], device=device))
    cut_left(both.cache, len(long) - len(short))
    last = model(ids[1:, -1:], mask[1:, len(long) - len(short) :], both.cache, use_cache=True)
    return _is_close(last.before_logits, _plain(model, [short], device))


def _is_close(actual: Tensor, expected: Tensor) -> bool:
    limit = _TOLERANCE.get(expected.dtype, 3e-2) * float(expected.abs().max())
    return limit > 0 and float((actual.float() - expected.float()).abs().max()) <= limit  # all 0 shows nothing
