"""Splits a model's weights among processes by torch's FSDP2 (``fully_shard``), for models that do not fit one device.

Weights, gradients and Adam's moments are split. A transformer block is whole only while it computes. The policy and its
value function are one FSDP2 root, which is entered through :meth:`ppo.actor_critic.ActorCritic.run`. In a frozen copy
the blocks are split and the rest stays whole.

A rollout can read split weights in two ways, and :func:`readable` offers both. It gathers the weights of one model at a
time and samples as usual; then that model must fit one device, without gradients and moments. Or it gathers one block
at a time, on all processes in step (:mod:`ppo.distributed.lockstep`).

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
from .processes import Processes, kind_of_group


def shard(actor: ActorCritic, frozen: nn.Module | None, device: torch.device | None = None) -> None:
    """Split the actor's weights, and the blocks of a frozen copy, over all processes.

    The shards go to ``device``. None: to the accelerators of the group, if it has any, wherever the model was before;
    so a model that fits no device is loaded on the CPU and split from there. All processes must hold the same
    model. Gradients are summed, not averaged, because the losses are already divided by the tokens of all processes.
    Raises ValueError for a critic that shares weights with the policy, and for a device that the group cannot reach.
    """
    shared = {id(p) for p in actor.policy.parameters()} & {id(p) for p in (actor.critic or nn.Module()).parameters()}
    if shared and actor.has_own_critic:
        raise ValueError("sharding='fsdp' cannot split a value=… that shares weights with the policy: give it its own")
    if shared:
        raise ValueError(
            "sharding='fsdp' cannot split a critic that shares frozen weights with the policy: use value_head='linear'"
            " or 'mlp', or train all weights"
        )
    kind = kind_of_group() if device is None or device.type != "cpu" else "cpu"
    if device is not None and device.type != kind:
        raise ValueError(
            f"device={device}, but the processes speak to each other on the {kind.upper()} only: start them in `with "
            "ppo.process_group():`, or pass device='cpu'"
        )
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
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot sum with a factor
    _fix_backward_order(actor)
    actor.run(lambda: None)  # FSDP2 makes the module that is called first the root
    actor.reshard()  # type: ignore[operator]


def _fix_backward_order(actor: ActorCritic) -> None:
    """In the backward pass each trained block gathers the one before it ahead of time, whatever ran before.

    By default FSDP2 takes this order from the forward passes since the last backward pass, and passes without gradients
    count. One process may have made more of these than another: process 0 alone writes a checkpoint, and then proves
    its decoder again. It would gather blocks that the others do not, and all processes would wait forever.
    """
    trained = [block for block in blocks(actor) if any(p.requires_grad for p in block.parameters())]
    order: list[Any] = [actor, *trained, actor]
    for earlier, later in pairwise(order):
        later.set_modules_to_backward_prefetch([earlier])


@contextmanager
def readable(model: nn.Module | None, processes: Processes, *, is_gathered: bool) -> Iterator[None]:
    """Within the context every process may call ``model``, split or not, as often as it likes, but not train it.

    With ``is_gathered`` the weights are whole in the context, as plain tensors. Otherwise a block is whole only while
    it computes.
    """
    modules = _split_modules(model) if model is not None else []
    if model is None or not modules:
        yield
    elif is_gathered:
        with _weights_gathered(modules):
            yield
    else:
        with _root_whole(model), in_step(*_forwards(model), processes):
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
    """Within the context the weights outside the blocks are whole: embeddings, last norm, output layer, value head."""
    is_root = isinstance(model, ActorCritic)
    if is_root:
        model.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        if is_root:
            model.reshard()  # type: ignore[operator]


def _forwards(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The causal LMs in a model, and the critics that need not be one, as far as their forward gathers weights."""
    if not isinstance(model, ActorCritic):
        return [model], []
    critics = [] if model.critic is None or not _split_modules(model.critic) else [model.critic]
    return ([model.policy], critics) if model.has_own_critic else ([model.policy, *critics], [])


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors under the same names. Split tensors are gathered from all processes, so all of them must call this.

    Process 0 gets the gathered tensors, on the CPU. The others get empty tensors in their place. Tensors that are not
    split are passed on, detached. Shared weights stay shared.
    """
    done: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if isinstance(tensor, DTensor) and id(tensor) not in done:
            full = tensor.full_tensor().detach()
            done[id(tensor)] = full.cpu() if dist.get_rank() == 0 else torch.empty(0, device="cpu")
    return {name: done[id(x)] if id(x) in done else x.detach() for name, x in tensors.items()}


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """``value``, which is whole on every process, on the device of ``like`` and split as ``like`` is, if it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def whole(scalar: Tensor) -> Tensor:
    """A scalar tensor that may be split, as a plain one."""
    return scalar.full_tensor() if isinstance(scalar, DTensor) else scalar


def number(scalar: Tensor) -> float:
    """The value of a scalar tensor, plain or split."""
    return float(whole(scalar))


def _split_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
