"""RMU: representation misdirection for unlearning (Li et al. 2024, the WMDP benchmark, arXiv 2403.03218).

On the passages the states after one block are pulled to c u, where u is a random direction that stays the same in the
whole run; on text to keep they are held where the original has them:

    mean over tokens of |h(x) - c u|² / H    +    retain_weight · mean over tokens of |h(x) - h_original(x)|² / H

As in the authors' code, u is uniform in [0, 1) in every coordinate and then of length 1, squares are means over the H
coordinates, all tokens of a text count, and only the last matrix of the MLP is trained, in that block and the two
before it. Their c is a number for one model (6.5 for Zephyr-7B). Here it is ``strength`` times the mean length of the
original's states on the passages, so that it need not be found again for every model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppo.generation.requests import pad_right
from ppo.lm.backbone import Backbone, blocks, evaluation_mode

from ..protocols import Passage
from .training import StepLog, Stop, Training, pairs_of, train

DEFAULT = Training(retain_weight=5.0, learning_rate=1e-3, scope="whole")
BLOCKS_BEFORE = 2  # so many blocks before the misdirected one are trained as well


def unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    strength: float = 2.0,
    layer: int | None = None,
    stop: Stop | None = None,
) -> StepLog:
    """RMU. Changes ``model``; returns the log.

    ``layer``: the block whose states are misdirected, from 0; None: the one in the middle of the model. The loss on
    text to keep is that of the states, whatever ``training.retain_loss`` says. ValueError for a strength that is not
    positive, and for a block that the model does not have or that gives back no states.
    """
    layers = blocks(Backbone(model).model)
    layer = (len(layers) - 1) // 2 if layer is None else layer
    if not strength > 0:
        raise ValueError(f"strength={strength!r} must be above 0: it is the length of the states to reach")
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer={layer} must be one of the {len(layers)} blocks of {type(model).__name__}, from 0")
    rows = [[*context, *tokens] for context, tokens in pairs_of(passages, training.scope)]
    original = Backbone(copy.deepcopy(model).requires_grad_(False).eval())
    target = _target(original, layer, rows, strength, training, generator)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        ids, mask = padded([rows[i] for i in indices], target.device)
        return misdirection(states_after(backbone, layer, ids, mask), target, mask).sum()

    def retain_loss(backbone: Backbone, ids: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
        with torch.no_grad():
            kept = states_after(original, layer, ids, mask)
        return misdirection(states_after(backbone, layer, ids, mask), kept, mask).mean()

    with _trained_alone(model, [_last_matrix(block) for block in layers[max(layer - BLOCKS_BEFORE, 0) : layer + 1]]):
        return train(
            model, len(rows), retain, forget_loss, training=training, generator=generator, stop=stop,
            retain_loss=retain_loss,
        )  # fmt: skip


def misdirection(states: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of the mean squared difference of each coordinate [B].

    ``states`` [B, S, H]; ``target`` [H], or [B, S, H]; ``mask`` bool [B, S].
    """
    squares = (states.float() - target.float()).square().mean(dim=-1)
    return (squares * mask).sum(dim=1) / mask.sum(dim=1)


def states_after(backbone: Backbone, layer: int, ids: Tensor, mask: Tensor) -> Tensor:
    """The states [B, S, H] that a block passes on. ValueError where it gives back no tensor of states."""
    taken: list[Any] = []
    hook = blocks(backbone.model)[layer].register_forward_hook(lambda _, inputs, output: taken.append(output))
    try:
        backbone(ids, mask)
    finally:
        hook.remove()
    state = taken[-1][0] if isinstance(taken[-1], tuple) else taken[-1]
    if not isinstance(state, Tensor) or state.shape[:2] != ids.shape:
        raise ValueError(f"block {layer} of {type(backbone.model).__name__} gives back no states: RMU cannot move them")
    return state


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids as int64 [B, S], right-padded, and the bool mask of the real ones."""
    ids = pad_right(rows, device)
    return ids, torch.arange(ids.shape[1], device=device) < torch.tensor([[len(row)] for row in rows], device=device)


@torch.no_grad()
def _target(
    original: Backbone,
    layer: int,
    rows: Sequence[Sequence[int]],
    strength: float,
    training: Training,
    generator: torch.Generator,
) -> Tensor:
    """c u [H], on the model's device."""
    device, lengths = next(original.model.parameters()).device, []
    with evaluation_mode(original.model), training.precision(original.model):
        for start in range(0, len(rows), training.microbatch):
            ids, mask = padded(rows[start : start + training.microbatch], device)
            lengths.append(states_after(original, layer, ids, mask)[mask].float().norm(dim=-1))
    direction = torch.rand(original.hidden_size, generator=generator, device="cpu").to(device)
    return direction / direction.norm() * strength * torch.cat(lengths).mean()


def _last_matrix(block: nn.Module) -> nn.Parameter:
    """The last matrix of a block, which is what its MLP writes to the residual stream."""
    matrices = [parameter for parameter in block.parameters() if parameter.ndim == 2]
    if not matrices:
        raise ValueError(f"{type(block).__name__} has no matrix to train: RMU needs the output layer of its MLP")
    return matrices[-1]


@contextmanager
def _trained_alone(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the context only these parameters take a gradient. Afterwards all are as they were."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, is_trained in flags:
            parameter.requires_grad_(is_trained)
