"""The logit lens: at which block of a model does the true token become readable?

The states after a block go through what follows the last block (the final norm, the output layer), as if the blocks
between were not there (nostalgebraist 2020). A model that only hides a text at its output still shows it at an earlier
block. The model's own code does this: its last block gives back the states of an earlier one. So it works for every
model whose blocks pass one tensor of states on; :class:`NoLens` tells of the others. This module knows token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppo.generation.requests import pad_right
from ppo.lm.backbone import Backbone, Features, blocks, evaluation_mode, probe_ids, swapped_forwards

from .teacher import length_batches


class NoLens(ValueError):
    """A model whose blocks cannot be read one after another, in a line that says why."""


@torch.no_grad()
def readable_layers(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
    chunk_tokens: int = 512,
) -> tuple[list[np.ndarray], int]:
    """The first block after which each token is the likeliest next one, and the number L of blocks.

    ``places``: the tokens of each sequence that are asked about, each at least 1. The result has an int64 array for
    each sequence, with 1 … L for its places in order, and L + 1 where the token is the likeliest after no block. Block
    L is the model's output itself. NoLens where the blocks do not pass one tensor on.
    """
    backbone = Backbone(model)
    layers = blocks(backbone.model)
    with evaluation_mode(model):
        _check(backbone, layers)
        found = [np.full(len(p), len(layers) + 1) for p in places]
        chosen = [i for i, p in enumerate(places) if len(p)]
        for part in length_batches([len(sequences[i]) for i in chosen], batch_tokens=batch_tokens):
            rows = [chosen[i] for i in part]
            firsts = _first_layers(
                backbone, layers, [sequences[i] for i in rows], [places[i] for i in rows], chunk_tokens
            )
            ends = np.cumsum([len(places[i]) for i in rows])
            for i, values in zip(rows, np.split(firsts, ends[:-1]), strict=True):
                found[i] = values
    return found, len(layers)


def _first_layers(
    backbone: Backbone,
    layers: Sequence[nn.Module],
    sequences: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    chunk_tokens: int,
) -> np.ndarray:
    """The first layers of all places of some sequences, one after another, int64 [N]."""
    device = next(backbone.model.parameters()).device
    ids = pad_right(sequences, device)
    mask = torch.arange(ids.shape[1], device=device) < torch.tensor([[len(s)] for s in sequences], device=device)
    row = torch.tensor([i for i, p in enumerate(places) for _ in p], device=device)
    place = torch.tensor([t for p in places for t in p], device=device)
    states, outputs = _states(backbone, layers, ids, mask)
    first = torch.full((len(place),), len(layers) + 1, device=device)
    for layer in reversed(range(len(layers))):
        with _last_gives(layers, outputs, states[layer]):
            before = backbone(ids, mask).before_logits[row, place - 1]
        parts = zip(torch.split(before, chunk_tokens), torch.split(ids[row, place], chunk_tokens), strict=True)
        right = [backbone.output_layer(part).argmax(dim=-1) == tokens for part, tokens in parts]
        first[torch.cat(right)] = layer + 1
    return first.cpu().numpy()


def _states(
    backbone: Backbone, layers: Sequence[nn.Module], ids: Tensor, mask: Tensor
) -> tuple[list[Tensor], list[Any]]:
    """What every block passes on [B, S, H], and all that it gave back."""
    taken: list[Any] = []
    hooks = [layer.register_forward_hook(lambda _, inputs, output: taken.append(output)) for layer in layers]
    try:
        backbone(ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return [_state_of(output) for output in taken], taken


def _state_of(output: Any) -> Tensor:
    state = output[0] if type(output) is tuple and output else output
    if not isinstance(state, Tensor):
        raise NoLens(f"a block gives back a {type(output).__name__}, not a tensor of states: it has no logit lens")
    return state


@contextmanager
def _last_gives(layers: Sequence[nn.Module], outputs: Sequence[Any], state: Tensor) -> Iterator[None]:
    """A context in which no block computes, and the last one gives back ``state``."""
    given = iter([*outputs[:-1], (state, *outputs[-1][1:]) if isinstance(outputs[-1], tuple) else state])

    def make(_: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: next(given)

    with swapped_forwards(layers, make):
        yield


def _check(backbone: Backbone, layers: Sequence[nn.Module]) -> None:
    """NoLens unless the last block's own states give the model's own output, and each block runs once."""
    name, ids = type(backbone.model).__name__, probe_ids(backbone.model)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if not layers:
        raise NoLens(f"{name} has no list of blocks: it has no logit lens")
    own: Features = backbone(ids, mask)
    states, outputs = _states(backbone, layers, ids, mask)
    if len(states) != len(layers) or any(s.shape != states[-1].shape for s in states):
        raise NoLens(f"{name} does not run its {len(layers)} blocks once each, with states of one shape: no logit lens")
    with _last_gives(layers, outputs, states[-1]):
        again = backbone(ids, mask)
    if not torch.allclose(own.before_logits.float(), again.before_logits.float(), rtol=1e-4, atol=1e-4):
        raise NoLens(f"{name} does not compute its output from its last block's states alone: it has no logit lens")
