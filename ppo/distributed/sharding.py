"""The weights of a model split among processes by torch's FSDP2 (``fully_shard``), for models that do not fit one.

Weights, gradients and Adam's moments are split; a transformer block is whole only while it computes. The policy and its
value function are one FSDP2 root, entered through :meth:`ppo.actor_critic.ActorCritic.run`; of a frozen copy the blocks
are split and the rest stays whole. A rollout gathers the weights of one model at a time and then samples as ever: it
must fit one device without gradients and moments. Where it does not, blocks are put together one at a time in a rollout
too, by all processes in step (:mod:`ppo.distributed.lockstep`): :func:`readable` is the door to both.

This module knows modules and tensors, nothing about PPO. It was run on the CPU (gloo) only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ..actor_critic import ActorCritic
from ..lm.backbone import blocks
from .lockstep import in_step
from .processes import Processes


def shard(actor: ActorCritic, frozen: nn.Module | None) -> None:
    """Split the actor's weights, and the blocks of a frozen copy, over all processes.

    The shards lie on the GPUs where the group has them, wherever the model was before; all processes must hold the same
    model. Gradients come out summed, not averaged: the losses are divided by the tokens of all processes already.
    """
    shared = {id(p) for p in actor.policy.parameters()} & {id(p) for p in (actor.critic or nn.Module()).parameters()}
    if shared:
        raise ValueError(
            "sharding='fsdp' cannot split a critic that shares frozen weights with the policy: take value_head='linear'"
            " or 'mlp', or train all weights"
        )
    kind = "cuda" if "nccl" in str(dist.get_backend_config()) else "cpu"
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for block in blocks(actor):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(actor, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(actor, "run")
    if frozen is not None and frozen is not actor.policy:
        for block in blocks(frozen):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        frozen.to(kind)
    for module in _split_modules(actor):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor
    _fix_backward_order(actor)
    actor.run(lambda: None)  # whoever is called first takes itself for the root
    actor.reshard()  # type: ignore[operator]


def _fix_backward_order(actor: ActorCritic) -> None:
    """Have each trained block gather the one before it ahead of time in the backward pass, whatever ran before.

    By default FSDP2 goes by the forward passes since the last backward, those without gradients among them. One process
    may have had more of these than another (process 0 alone writes a checkpoint, and then proves its decoder again):
    it would gather what the others do not, and all would wait forever.
    """
    trained = [block for block in blocks(actor) if any(p.requires_grad for p in block.parameters())]
    order: list[Any] = [actor, *trained, actor]
    for earlier, later in pairwise(order):
        later.set_modules_to_backward_prefetch([earlier])


@contextmanager
def readable(model: nn.Module | None, processes: Processes, *, is_gathered: bool) -> Iterator[None]:
    """Within the context every process may call ``model``, which may be split, as often as it likes; not for training.

    ``is_gathered``: the weights are whole there, as plain tensors. Otherwise blocks are whole only while they compute.
    """
    modules = _split_modules(model) if model is not None else []
    if model is None or not modules:
        yield
    elif is_gathered:
        with _weights_gathered(modules):
            yield
    else:
        with _root_whole(model), in_step(_causal_lms(model), processes):
            yield


@contextmanager
def _weights_gathered(modules: Sequence[FSDPModule]) -> Iterator[None]:
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(not isinstance(module, ActorCritic), recurse=False)


@contextmanager
def _root_whole(model: Any) -> Iterator[None]:
    """What belongs to no block: embeddings, last norm, output layer, value head."""
    is_root = isinstance(model, ActorCritic)
    if is_root:
        model.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        if is_root:
            model.reshard()  # type: ignore[operator]


def _causal_lms(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, ActorCritic):
        return [model.policy] if model.critic is None else [model.policy, model.critic]
    return [model]


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors of the same names, gathered from all processes where they are split; all of them must call.

    Process 0 gets what was gathered, on the CPU; the others get empty tensors in its place. Shared weights stay shared.
    """
    done: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if isinstance(tensor, DTensor) and id(tensor) not in done:
            full = tensor.full_tensor().detach()
            done[id(tensor)] = full.cpu() if dist.get_rank() == 0 else torch.empty(0)
    return {name: done[id(x)] if id(x) in done else x.detach() for name, x in tensors.items()}


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """``value``, whole on every process, split as ``like`` is; or just on its device."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def number(scalar: Tensor) -> float:
    """A scalar that may be split."""
    return float(scalar.full_tensor() if isinstance(scalar, DTensor) else scalar)


def _split_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
