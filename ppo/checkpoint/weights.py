"""The weights of a checkpoint: written once where they never change, read back exactly.

This module knows models and their files, not what a run is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..distributed.sharding import split_like
from ..lm.adapters import has_adapter
from ..policy import Policy
from .folder import link_or_copy, load_tensors, save_tensors

REFERENCE, VALUE = "reference.safetensors", "value.safetensors"
TRAINED_WEIGHTS, FROZEN_WEIGHTS = "policy.safetensors", "frozen.safetensors"  # of no plain Hugging Face model


def write_policy(model: Any, target: Path, state: Mapping[str, Tensor], *, shared: Path | None) -> None:
    """Write a plain Hugging Face folder if the model is a plain one, else all weights ``state`` by name.

    Frozen weights by name are in a file of their own, which all checkpoints of a run share; ``shared``: that file of an
    earlier checkpoint, or None.
    """
    if isinstance(model, PreTrainedModel) and not has_adapter(model):
        model.save_pretrained(target, state_dict=dict(state), max_shard_size="1000GB")
        return
    target.mkdir(exist_ok=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name, _ in model.named_parameters()]
    save_tensors(target / TRAINED_WEIGHTS, {name: state[name] for name in names if name in trained})
    write_once(shared, target / FROZEN_WEIGHTS, {name: state[name] for name in names if name not in trained})


def write_once(shared: Path | None, target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Frozen weights are written once. Later checkpoints link to that file."""
    if shared is not None:
        link_or_copy(shared, target)
    else:
        save_tensors(target, tensors)


def all_weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters by name; a shared one appears once."""
    return {name: p.detach() for name, p in model.named_parameters()}


def policy_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a policy that is not a plain Hugging Face model, by name. Raises ValueError where it is one."""
    files = [folder / name for name in (TRAINED_WEIGHTS, FROZEN_WEIGHTS)]
    if not files[0].is_file():
        raise ValueError(f"{folder} holds a plain Hugging Face model: resume without model=…")
    return {name: tensor for file in files if file.is_file() for name, tensor in load_tensors(file).items()}


@torch.no_grad()
def load_exactly(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put weights by name into a model. Raises ValueError where names or shapes differ."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != tensors.keys():
        difference = sorted(parameters.keys() ^ tensors.keys())
        raise ValueError(f"the checkpoint's weights do not fit {type(model).__name__}; they differ in {difference[:5]}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"the checkpoint's {name} is {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
        parameter.copy_(split_like(tensors[name], parameter))


def restore_value(policy: Policy, folder: Path) -> None:
    """Read the value function of a checkpoint. Raises ValueError for weights that do not fit, or are not there."""
    file, own = folder / VALUE, policy.actor.value_state()
    if not file.is_file():
        raise ValueError(f"{file} does not exist: name a checkpoint, or a folder that save_value wrote")
    saved = load_tensors(file)
    wrong = {name for name, x in saved.items() if name not in own or own[name].shape != x.shape}
    if unfit := sorted(wrong | (own.keys() - saved.keys())):
        shown = ", ".join(unfit[:5]) + (f" and {len(unfit) - 5} more" if len(unfit) > 5 else "")
        raise ValueError(
            f"{file} holds weights that do not fit the value function, which is the config's value_head or your own "
            f"module's (names that begin with 'critic.'); they differ in {shown}"
        )
    policy.actor.load_state_dict({name: split_like(x, own[name]) for name, x in saved.items()}, strict=False)


def restore_frozen(frozen: nn.Module, folder: Path) -> None:
    """Read the frozen copy of a checkpoint. Raises ValueError for weights that do not fit."""
    load_exactly(frozen, load_tensors(folder / REFERENCE))
