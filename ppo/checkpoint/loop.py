"""The checkpoint of a plain training loop: weights, Adam's moments, one generator, and whatever is JSON.

It serves fine-tuning beside PPO (memorising, unlearning baselines). :mod:`ppo.checkpoint.run_state` serves the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..lm.device import FLOATS
from ..lm.safetensors_header import check_kind_of_numbers
from .folder import OPTIMIZER, RANDOM, load_tensors, read_state, save_tensors, write_atomically


def has_loop(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from. A kill during a write may leave it as ``<folder>.old``."""
    return folder.is_dir() or folder.with_name(folder.name + ".old").is_dir()


def save_loop(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    state: Mapping[str, Any],
) -> None:
    """Write weights, moments, generator and ``state`` (plain JSON). A kill leaves the old or the new checkpoint."""

    def fill(target: Path) -> Mapping[str, Any]:
        save_tensors(target / "weights.safetensors", dict(model.named_parameters()))
        moments = {
            f"{name}/{key}": value
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }
        save_tensors(target / OPTIMIZER, moments)
        save_tensors(target / RANDOM, {"generator": generator.get_state()})
        return state

    write_atomically(folder, fill)


@torch.no_grad()
def restore_loop(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    """Put back what :func:`save_loop` wrote and return its ``state``.

    Raises ValueError for a damaged checkpoint and for one of another model.
    """
    folder, state = read_state(folder)
    weights, parameters = load_tensors(folder / "weights.safetensors"), dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        raise ValueError(f"{folder} belongs to another model: they differ in {sorted(weights.keys() ^ parameters)[:3]}")
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            shapes = f"{list(weights[name].shape)} there, {list(parameter.shape)} here"
            raise ValueError(f"{folder} belongs to another model: {name} has the shape {shapes}")
        check_kind_of_numbers(weights[name], parameter, name=f"{folder / 'weights.safetensors'}: {name}")
    moments = load_tensors(folder / OPTIMIZER)
    for full_name, value in moments.items():
        name, _, key = full_name.rpartition("/")
        if (
            name not in parameters
            or value.shape not in ((), parameters[name].shape)
            or value.dtype not in FLOATS.values()
        ):
            shape = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            raise ValueError(f"{folder / OPTIMIZER}: {full_name!r:.200} is {shape}, which fits no weight of the model")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
    for full_name, value in moments.items():
        name, _, key = full_name.rpartition("/")
        optimizer.state[parameters[name]][key] = value if key == "step" else value.to(parameters[name].device)
    try:
        generator.set_state(load_tensors(folder / RANDOM)["generator"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder / RANDOM} is damaged: it holds no state of the generator") from error
    return state
