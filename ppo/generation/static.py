"""The decoding step in static shapes, so that ``torch.compile`` can take it, draw included, as one graph.

It computes what the ordinary step computes, but always for all slots. Its cache grows in few, large steps
(:func:`static_width`), so few shapes occur, and each is compiled once in the life of the process. No operation in it
depends on a value: a row's position and what it may see are tensors, and a free row is computed like one in use. The
host does its work between two steps, as in ``engine.py``: it sees which rows have ended, admits requests, moves rows
and widens the cache. Weights are arguments, because PPO reads them anew for every rollout. They must not be packed
(``linear.py``), because the compiler cannot read packed weights.

On the CPU this was tested with inductor. On CUDA, for which it is written (``mode="reduce-overhead"``, which replays
the step as a CUDA graph), it was never run. So it is not known whether the step is captured there, nor what that gains.
A CUDA graph holds addresses. Weights and cache are marked as staying in their place, so that no step copies them. A
rollout that has them in another place is recorded again, and torch keeps the older recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..config import Sampling
from .attention import Fed, attended, past_mask
from .cache import KVCache
from .sampling import Draw, draw_blindly
from .transcript import Transcript
from .transformer import Network

_NARROWEST, _DOUBLED = 64, 512  # columns
_MOST_SHAPES = 64  # that are compiled; torch runs any more uncompiled, and says so

Step = Callable[[Network, Sequence[Tensor], Tensor, Tensor, Tensor, Tensor, Sampling], tuple[Tensor, Draw, Tensor]]
"""The type of :func:`static_step`, compiled or not."""


def static_width(columns: int) -> int:
    """The smallest of 64, 128, 256, 512, 1024, 1536, 2048, … that holds so many columns."""
    if columns > _DOUBLED:
        return -(-columns // _DOUBLED) * _DOUBLED
    return max(_NARROWEST, 1 << (columns - 1).bit_length())


@cache  # torch keeps compiled code by function: one wrapper a device is enough
def compiled_step(device_type: str) -> Step:
    """:func:`static_step`, compiled when it first meets a shape; on the CPU that needs a C++ compiler."""
    mode = "reduce-overhead" if device_type == "cuda" else "default"
    step = torch.compile(static_step, dynamic=False, mode=mode)
    limited: Step = torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES)(step)  # torch 2.8's compile takes no limit
    return limited


def static_step(
    network: Network,
    layers: Sequence[Tensor],
    tokens: Tensor,
    positions: Tensor,
    uniforms: Tensor,
    is_early: Tensor,
    sampling: Sampling,
) -> tuple[Tensor, Draw, Tensor]:
    """Feed each of S rows its last token, write to the cache, and draw the next one.

    ``layers``: the cache's, [2, S, kv heads, columns, width] each. ``tokens``, ``positions`` int64 [S]; ``uniforms``
    float32 [S]; ``is_early`` bool [S]: no EOS may be drawn. Returns the hidden states [S, H], what was drawn, and the
    total weights [S] that :func:`ppo.generation.sampling.check` wants to see. Rows are independent of each other: free
    ones are computed along, at any position inside the cache, and nobody reads what comes out.
    """
    hidden = network(tokens, positions, StaticAttention(network, layers, positions))
    drawn, total = draw_blindly(network.output(hidden).float(), uniforms, sampling, is_early)
    return hidden, drawn, total


class StaticAttention:
    """Attention of one new token for every row of the cache, at ``positions`` int64 [S]."""

    def __init__(self, network: Network, layers: Sequence[Tensor], positions: Tensor) -> None:
        self._network = network
        self._layers = layers
        self._positions = positions
        self._rows = torch.arange(len(positions), device=positions.device)
        self._masks: dict[int | None, Tensor] = {}

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        past = self._layers[layer]
        past[:, self._rows, :, self._positions] = key_value
        keys, values = past.flatten(1, 2)
        return attended(self._network, layer, query, keys.transpose(1, 2), values, self._mask(layer))

    def _mask(self, layer: int) -> Tensor:
        columns, window = self._layers[layer].shape[3], self._network.blocks[layer].window
        if window is not None and window >= columns:  # no sequence outgrows it, so it hides nothing
            window = None
        if window not in self._masks:
            self._masks[window] = past_mask(self._network, self._positions, columns, window)
        return self._masks[window]


class StaticDecoder:
    """Decodes one token for all rows of the cache by a :data:`Step`. It is used as the ordinary decoder is."""

    def __init__(self, network: Network, cache: KVCache, transcript: Transcript, step: Step) -> None:
        self._network = network
        self._cache = cache
        self._transcript = transcript
        self._step = step
        self._is_cuda = network.device.type == "cuda"
        self._columns = 0
        if self._is_cuda:
            keep_in_place(tensors_of(network))

    def advance(self, fed: Fed, num_rows: int) -> tuple[Tensor, list[bool]]:
        """Decode one step for all S rows, of which the first ``num_rows`` are real.

        Returns their next tokens int64 [num_rows], and of each of their requests whether it is now finished.
        """
        if self._is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # what the last step returned is used up
            if self._columns != self._cache.columns:
                keep_in_place(self._cache.layers)
                self._columns = self._cache.columns
        hidden, drawn, total = self._step(
            self._network, self._cache.layers, fed.tokens, fed.positions, *self._transcript.next_draw(fed.requests),
            self._transcript.sampling,
        )  # fmt: skip
        used = slice(num_rows)
        return self._transcript.follow(fed.requests[used], drawn[used], total[used], hidden[used])


def keep_in_place(tensors: Iterable[Tensor]) -> None:
    """Tell a CUDA graph that these tensors stay where they are, so that it does not copy them before every step.

    Without a guard: with one, as torch 2.8 has it by default, every new model or cache would be compiled for anew.
    """
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor, guard=False)


def tensors_of(part: Any) -> Iterator[Tensor]:
    """All tensors of a network, at any depth."""
    if isinstance(part, Tensor):
        yield part
    else:
        inner = part if isinstance(part, tuple) else vars(part).values() if hasattr(part, "__dict__") else ()
        for one in inner:
            yield from tensors_of(one)
