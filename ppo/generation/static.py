"""The decoding step in static shapes, so that ``torch.compile`` can take it as one graph, draw included.

It computes what the ordinary step computes, but always for all slots, and over a cache that widens in few, large steps
(:func:`static_width`): few shapes occur, and each is compiled once in the life of the process. Inside it nothing looks
at a number: where a row is and what it may see are tensors, and whether it is in use makes no difference. What is left
to the host is done between two steps, as ever: to see what has ended, to admit, to move rows, to widen the cache.
Weights come in as arguments, since PPO reads them anew for every rollout; for the compiler they must not be packed
(``linear.py``).

On the CPU this was tested with inductor. On CUDA, for which it is written (``mode="reduce-overhead"``, which replays
the step as a CUDA graph), it was never run: neither that the step is captured there nor what that gains is known. A
graph holds addresses. Weights and cache are marked as what stays in its place, so that no step copies them; but a
rollout that has them elsewhere than the last one is recorded anew, and torch keeps the older recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..config import Sampling
from .attention import attended, past_mask
from .cache import KVCache
from .sampling import Draw, check, draw_blindly
from .transcript import Transcript
from .transformer import Network

_NARROWEST, _DOUBLED = 64, 512  # columns
_MOST_SHAPES = 64  # that are compiled; a process that meets more runs those uncompiled, and torch says so

Step = Callable[[Network, Sequence[Tensor], Tensor, Tensor, Tensor, Tensor, Sampling], tuple[Tensor, Draw, Tensor]]
"""What :func:`static_step` is, and what it is when compiled."""


def static_width(columns: int) -> int:
    """The next of 64, 128, 256, 512, 1024, 1536, 2048, …"""
    if columns > _DOUBLED:
        return -(-columns // _DOUBLED) * _DOUBLED
    return max(_NARROWEST, 1 << (columns - 1).bit_length())


@cache  # torch keeps what it has compiled by the function; one wrapper a device is enough
def compiled_step(device_type: str) -> Step:
    """:func:`static_step`, compiled when it first meets a shape; on the CPU that needs a C++ compiler."""
    mode = "reduce-overhead" if device_type == "cuda" else "default"
    # torch's own annotation lacks the last argument
    step: Step = torch.compile(static_step, dynamic=False, mode=mode, recompile_limit=_MOST_SHAPES)  # type: ignore[call-overload]
    return step


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
    total weights [S] that :func:`check` wants to see. Rows are independent of each other: free
    ones are computed along, at any position inside the cache, and nobody reads what comes out.
    """
    hidden = network(tokens, positions, StaticAttention(network, layers, positions))
    drawn, total = draw_blindly(network.output(hidden).float(), uniforms, sampling, is_early)
    return hidden, drawn, total


class StaticAttention:
    """One new token for every row of the cache, at ``positions`` int64 [S]."""

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
        if window is not None and window >= columns:  # no sequence outgrows it
            window = None
        if window not in self._masks:
            self._masks[window] = past_mask(self._network, self._positions, columns, window)
        return self._masks[window]


class StaticDecoder:
    """Takes all rows of the cache one token further, by a :data:`Step`; otherwise as the ordinary decoder does."""

    def __init__(self, network: Network, cache: KVCache, transcript: Transcript, step: Step) -> None:
        self._network = network
        self._cache = cache
        self._transcript = transcript
        self._step = step
        self._is_cuda = network.device.type == "cuda"
        self._columns = 0
        if self._is_cuda:
            keep_in_place(tensors_of(network))

    def advance(self, tokens: Tensor, positions: Tensor, requests: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """Last tokens, where they stand, and of which requests, int64 [S]; the first ``num_rows`` are real.

        Returns for those the next tokens int64 [num_rows], and which requests are now finished, bool [num_rows].
        """
        if self._is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # what the last step returned is used up
            if self._columns != self._cache.columns:
                keep_in_place(self._cache.layers)
                self._columns = self._cache.columns
        hidden, drawn, total = self._step(
            self._network, self._cache.layers, tokens, positions, *self._transcript.next_draw(requests),
            self._transcript.sampling,
        )  # fmt: skip
        used = slice(num_rows)
        check(total[used])
        return drawn.tokens[used], self._transcript.follow(requests[used], drawn[used], hidden[used])


def keep_in_place(tensors: Iterable[Tensor]) -> None:
    """Tell a CUDA graph that it need not copy these into places of its own before every step."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor)


def tensors_of(part: Any) -> Iterator[Tensor]:
    """All tensors of a network, however deep."""
    if isinstance(part, Tensor):
        yield part
    else:
        inner = part if isinstance(part, tuple) else vars(part).values() if hasattr(part, "__dict__") else ()
        for one in inner:
            yield from tensors_of(one)
