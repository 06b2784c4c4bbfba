"""The shapes of a folder's weights, from the headers of its safetensors files, and whether a config fits them.

:mod:`ppo.lm.config_bounds` checks the rest of a config. This module reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..io.files import read_json

Shapes = Mapping[str, tuple[int, ...]]
_SIZES = ("hidden_size", "vocab_size")


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in a folder's safetensors files, by name. Raises ValueError for a damaged file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors.index.json")):
        indexed_files(path, suffix=".safetensors")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return shapes


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
