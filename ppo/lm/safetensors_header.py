"""Shapes and types of a folder's weights, from the headers of its safetensors files, and whether a config fits them.

:mod:`ppo.lm.config_bounds` checks the rest of a config. This module reads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..io.files import read_json
from ..io.plain_files import check_plain
from .device import FLOATS

Fact = TypeVar("Fact")
Shapes = Mapping[str, tuple[int, ...]]
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SIZES = ("hidden_size", "vocab_size")


def check_kind_of_numbers(saved: Tensor, own: Tensor, *, name: str) -> None:
    """Raise ValueError where floats are to come from a tensor of anything else, which a cast would hide.

    Floats are those of :data:`ppo.lm.device.FLOATS`, of any precision. Other types (masks, packed weights) must agree.
    """
    floats = FLOATS.values()
    if saved.dtype != own.dtype and not (saved.dtype in floats and own.dtype in floats):
        raise ValueError(f"{name} is {saved.dtype}, which does not fit {own.dtype}")


def check_float_weights(config: Any, types: Mapping[str, str], weights: Collection[str]) -> None:
    """Raise ValueError if a weight is of no type of floats, unless the config says how the weights are packed.

    ``types``: of the tensors in the files, by name; ``weights``: the model's, by name. A file may hold masks of other
    types, under names of their own.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    for name, kind in types.items():
        if (name in weights or name.endswith(".weight")) and kind not in FLOATS:
            raise ValueError(f"its weight {name} is of type {kind}, which must be one of {', '.join(FLOATS)}")


def weight_types(folder: Path) -> dict[str, str]:
    """The types of all tensors in a folder's safetensors files, by name, such as "float32", or "I8" of other kinds."""
    found = _headers(folder, lambda part: str(part.get_dtype()))
    return {name: _NAMES.get(kind, kind) for name, kind in found.items()}


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in a folder's safetensors files, by name. Raises ValueError for a damaged file."""
    for path in sorted(folder.glob("*.safetensors.index.json")):
        indexed_files(path, suffix=".safetensors")
    return _headers(folder, lambda part: tuple(part.get_shape()))


def _headers(folder: Path, read: Callable[[Any], Fact]) -> dict[str, Fact]:
    """What ``read`` finds of every tensor in a folder's safetensors files, by name."""
    facts: dict[str, Fact] = {}
    for path in sorted(folder.glob("*.safetensors")):
        check_plain(path)
        try:
            with safe_open(path, framework="pt") as file:
                facts |= {name: read(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return facts


def indexed_files(index: Path, *, suffix: str) -> list[str]:
    """The names of the files that an index of weights points to. Raises ValueError if one is not of its folder.

    ``suffix``: what such a file ends with, ".safetensors" or ".bin".
    """
    record = read_json(index)
    files = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f"{index} is damaged: it has no weight_map")
    for file in files.values():
        if not isinstance(file, str) or file != Path(file).name or not file.endswith(suffix):
            raise ValueError(f"{index} names {file!r:.80}, which is no {suffix} file of its folder")
    return sorted(set(files.values()))


def check_sizes(config: Any, shapes: Shapes, *, name: str) -> None:
    """Raise ValueError if a config has more layers than there are weights, or is wider than the widest weight."""
    if not shapes:
        return
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    limits = {"num_hidden_layers": len(shapes), **dict.fromkeys(_SIZES, widest)}
    for field, limit in limits.items():
        value = getattr(config, field, None)
        if isinstance(value, int) and not 0 <= value <= limit:
            raise ValueError(f"{name} has a config that does not fit its weights: {field} is {value}, at most {limit}")
