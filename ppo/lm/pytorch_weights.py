"""Weights of a folder that has no safetensors file, only PyTorch's own: ``pytorch_model.bin``, whole or in parts.

They are read by ``torch.load(weights_only=True)``, which builds tensors and runs nothing. This module reads shapes; the
weights themselves are read by transformers, by the same function. It knows no model.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from ..io.plain_files import check_plain
from .safetensors_header import indexed_files

INDEX, WHOLE = "pytorch_model.bin.index.json", "pytorch_model.bin"


def pytorch_files(folder: Path) -> list[Path]:
    """The files that hold a folder's PyTorch weights; none if it has no such weights.

    Raises ValueError for an index that is damaged or names files elsewhere.
    """
    index = folder / INDEX
    if not index.is_file():
        return [folder / WHOLE] if (folder / WHOLE).is_file() else []
    return [folder / file for file in indexed_files(index, suffix=".bin")]


def pytorch_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in a folder's PyTorch files, by name.

    Raises ValueError for a file that is missing or damaged, that holds anything but tensors by name, or whose tensors
    are larger than the file.
    """
    return {name: tuple(x.shape) for path in pytorch_files(folder) for name, x in _tensors(path).items()}


def pytorch_types(folder: Path) -> dict[str, str]:
    """The types of all tensors in a folder's PyTorch files, by name, such as "float32"; errors as for the shapes."""
    found = (pair for path in pytorch_files(folder) for pair in _tensors(path).items())
    return {name: str(x.dtype).removeprefix("torch.") for name, x in found}


def _tensors(path: Path) -> dict[str, Tensor]:
    check_plain(path)
    try:
        held = _mapped(path)
    except UnpicklingError as error:  # torch's own text advises to load the file without weights_only
        raise ValueError(f"{path} is no file of tensors alone, and whatever else is in it is not run") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or holds more than tensors: {str(error).splitlines()[0]:.200}") from error
    if not isinstance(held, dict) or not all(isinstance(x, Tensor) for x in held.values()):
        raise ValueError(f"{path} holds something other than tensors by name")
    size = path.stat().st_size
    for name, tensor in held.items():
        if tensor.nbytes > size:
            raise ValueError(f"{path} is damaged: {name} has {tensor.nbytes} bytes, more than the file's {size}")
    return held


def _mapped(path: Path) -> object:
    """What a file holds, without reading the numbers where the file's format allows that."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
    return torch.load(path, map_location="meta", weights_only=True)  # the format before torch 1.6
