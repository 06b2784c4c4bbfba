"""Whether a config asks for a larger model than the folder's weights make up, before any memory is taken.

A config is a small file that can ask for anything. Transformers believes it: while it reads the config, it makes lists
as long as the config says. It builds a billion layers one by one before it notices that weights are missing. It makes
room for positions that no weight has before it compares a shape. So this module checks two things against the headers
of the safetensors files: first the counts in the config, then the model that the config describes, built without its
numbers (on torch's "meta" device). PyTorch's own weight files count where there are no safetensors. This module reads
no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..io.files import read_json
from ..io.plain_files import check_plain_files
from .foreign_code import check_config_code, check_no_adapter, no_hub_kernels
from .kinds import build
from .pytorch_weights import pytorch_files, pytorch_shapes, pytorch_types
from .safetensors_header import Shapes, check_float_weights, check_sizes, weight_shapes, weight_types

MAX_CONFIG_BYTES = 4 * 2**20
SPARE_BUFFER_BYTES = 256 * 2**20  # masks and tables of positions, in addition to as many bytes as the weights have
_LAYERS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_blocks", "encoder_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip
_COUNTS = (*_LAYERS, "num_labels", "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PACKED = 16  # weights that a quantised file holds in one number, at most: 2 bits each, in an int32


def read_config(folder: Path) -> Any:
    """The config of the model in a folder. What it would make transformers build while reading it is checked first.

    Raises ValueError. The message calls the model "it", because the caller knows its name.
    """
    check_plain_files(folder)
    shapes = weight_shapes(folder) or pytorch_shapes(folder)
    if not shapes:
        raise ValueError("it has no safetensors file in its folder, and no pytorch_model.bin")
    most = max(len(shapes), *(size for shape in shapes.values() for size in shape), 1)
    written = read_json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)
    file = written.get("transformers_weights") if isinstance(written, dict) else None
    if file is not None and (not isinstance(file, str) or file != Path(file).name):
        raise ValueError(f"its config names {file!r:.80} as transformers_weights, which is no file of its folder")
    for field, value in _counts(written):
        limit = len(shapes) if field in _LAYERS else most
        if isinstance(value, int) and not 0 <= value <= limit:
            raise ValueError(f"its config does not fit its weights: {field} is {value}, at most {limit}")
    check_no_adapter(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_config_code(config)
    check_float_weights(config, _types(folder), ())
    return config


def _types(folder: Path) -> dict[str, str]:
    return weight_types(folder) or pytorch_types(folder)


def _counts(record: Any) -> Iterator[tuple[str, Any]]:
    """(field, value) of every number up to which transformers counts while it reads a config, at any depth."""
    if isinstance(record, list):
        for value in record:
            yield from _counts(value)
    if not isinstance(record, dict):
        return
    for field, value in record.items():
        if field in _COUNTS:
            yield field, value
        elif field == "attention_types":  # GPT-Neo: [[[kinds], how often], …]
            yield from ((field, number) for number in _numbers(value))
        else:
            yield from _counts(value)


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    else:
        yield value


def check_room(config: Any, folder: Path) -> None:
    """Raise ValueError if a config has more layers, wider layers or larger buffers than the folder's weights allow."""
    shapes = weight_shapes(folder) or pytorch_shapes(folder)
    check_sizes(config, shapes, name="it")
    files = list(folder.glob("*.safetensors")) or pytorch_files(folder)
    check_built(config, shapes, num_bytes=sum(path.stat().st_size for path in files), types=_types(folder))


def check_built(config: Any, shapes: Shapes, *, num_bytes: int, types: Mapping[str, str] | None = None) -> None:
    """Raise ValueError if the model that a config describes is larger than its files. It is built without memory.

    ``shapes`` and ``types`` are those of the tensors in the files, ``num_bytes`` the size of the files. A weight that
    has the same name in the files must have the same shape. Whatever the names are, all weights together must have at
    most twice the numbers that the files hold. (A weight that is only missing is reported when the model is loaded.)
    """
    check_config_code(config)
    # Some classes draw random numbers on the CPU even so.
    with no_hub_kernels(), torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = build(config)
        model.tie_weights()  # transformers 5.0 leaves this out on "meta"
    is_packed = getattr(config, "quantization_config", None) is not None
    parameters = dict(model.named_parameters())
    check_float_weights(config, types or {}, parameters)
    for weight, parameter in parameters.items():
        if not is_packed and shapes.get(weight, tuple(parameter.shape)) != tuple(parameter.shape):
            raise ValueError(
                f"its config does not fit its weights: {weight} is {shapes[weight]} in the file, "
                f"{tuple(parameter.shape)} by the config"
            )
    held = sum(math.prod(shape) for shape in shapes.values()) * (_PACKED if is_packed else 1)
    if (wanted := sum(parameter.numel() for parameter in parameters.values())) > 2 * held:
        raise ValueError(f"its config asks for {wanted} weights, its files hold {held}")
    room = SPARE_BUFFER_BYTES + num_bytes
    if (taken := sum(buffer.nbytes for buffer in model.buffers())) > room:
        raise ValueError(f"its config asks for {taken} bytes of masks and tables, more than {room}")
