"""Low-rank adapters (LoRA, Hu et al. 2021) on a model: add, switch off, merge, remove, save and load them.

Files have PEFT's format, so PEFT loads our adapters and we load PEFT's. The adapted layer itself is in
:mod:`models.lora_layer`. This module knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ppo.checkpoint import save_tensors
from ppo.io.console import shown_errors
from ppo.io.files import naming, read_json, write_json
from ppo.lm.backbone import blocks
from ppo.lm.device import FLOATS

from .lora_layer import LoraConfig, LoraLinear

_PREFIX = "base_model.model."


def linear_targets(model: nn.Module) -> tuple[str, ...]:
    """Names of all linear layers inside the model's blocks: every one but the output layer."""
    found = {path.rpartition(".")[2]: None for block in blocks(model) for path, layer in block.named_modules()
             if isinstance(layer, nn.Linear | Conv1D)}  # fmt: skip
    return tuple(found)


def add_lora(model: nn.Module, config: LoraConfig, *, generator: torch.Generator | None = None) -> list[str]:
    """Freeze the model, put an adapter on every matching layer (in place), and return the paths of these layers.

    ValueError when the model already has adapters, when nothing matches, or when a match is not a linear layer or
    shares its weight with another module. A tied output layer does: merging its adapter would change the input
    embedding too.
    """
    if adapters(model):
        raise ValueError("the model already has LoRA adapters; merge or remove them first (unload)")
    matching = {path: module for path, module in model.named_modules() if path and config.matches(path)}
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if not matching:
        ends = sorted({path.rpartition(".")[2] for path in linear})
        raise ValueError(f"LoraConfig.targets={config.targets!r} matches no module; linear layers: {', '.join(ends)}")
    if wrong := [path for path in matching if path not in linear]:
        kind = type(matching[wrong[0]]).__name__
        raise ValueError(
            f"LoraConfig.targets={config.targets!r} matches {wrong[0]}, a {kind}; only linear layers are adapted"
        )
    _check_untied(model, matching)
    model.requires_grad_(False)
    for path, module in matching.items():
        _replace(model, path, LoraLinear(module, config, generator).train(module.training))
    return list(matching)


def _check_untied(model: nn.Module, matching: Mapping[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(weight := module._parameters.get("weight"), nn.Parameter):
            owners.setdefault(id(weight), []).append(path)
    for path, module in matching.items():
        if others := [owner for owner in owners[id(module.weight)] if owner != path]:
            raise ValueError(
                f"LoraConfig.targets matches {path}, whose weight is that of {', '.join(others)} too: merging the"
                " adapter would change both; exclude it, or untie them (load with tie_word_embeddings=False)"
            )


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the ``with``, the model acts without its adapters, as the frozen reference does."""
    with ExitStack() as stack:
        for layer in adapters(model).values():
            stack.enter_context(layer.disable_adapter())
        yield


def merge(model: nn.Module) -> None:
    """Add every adapter to the weights below it."""
    for layer in adapters(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo ``merge``."""
    for layer in adapters(model).values():
        layer.unmerge()


def unload(model: nn.Module, *, keep: bool) -> None:
    """Turn adapted layers back into plain ones, in place. ``keep`` merges the adapters in; otherwise they are lost."""
    for path, layer in adapters(model).items():
        layer.unmerge()
        if keep:
            layer.merge()
        _replace(model, path, layer.base)


def save_adapter(model: nn.Module, folder: str | Path, config: LoraConfig, *, base_model: str = "") -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does; ``base_model`` names the model."""
    layers = adapters(model)
    if not layers:
        raise ValueError("the model has no LoRA adapters to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, layer in layers.items():
        for part, parameter in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            tensors[f"{_PREFIX}{path}.{part}.weight"] = parameter.detach().cpu().contiguous()
    save_tensors(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "fan_in_fan_out": any(layer.is_transposed for layer in layers.values()),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", description)


@shown_errors()
def load_adapter(model: nn.Module, folder: str | Path) -> LoraConfig:
    """Put a saved adapter (ours or PEFT's plain LoRA) on a model without adapters, in place, and return its config.

    A regular expression from a file may never finish, so it is not run. If ``target_modules`` is an expression, or if
    PEFT's ``layers_to_transform`` or ``exclude_modules`` exclude layers, the names of the file's tensors decide which
    layers are adapted. The returned config then lists the path of each.

    ValueError for a missing or broken file, for a variant of LoRA that is not plain, and for tensors that do not fit.
    The model has no adapters after such an error.
    """
    folder = Path(folder)
    config, is_told_by_tensors = _read_config(folder / "adapter_config.json")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing; save the adapter as safetensors")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} cannot be read: {error}; save the adapter again") from error
    ranks = {len(tensor) for name, tensor in tensors.items() if ".lora_A." in name and tensor.dim() == 2}
    if config.rank > max(ranks, default=0):
        raise ValueError(f"{folder / 'adapter_config.json'} has r={config.rank}; {weights} holds {sorted(ranks)}")
    if is_told_by_tensors:
        if not (paths := _adapted_paths(tensors)):
            raise ValueError(f"{weights} holds no LoRA adapter")
        config = replace(config, targets=paths)
    with naming(folder):
        add_lora(model, config)
    expected = {
        f"{_PREFIX}{path}.{part}.weight": parameter
        for path, layer in adapters(model).items()
        for part, parameter in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
    }
    problems = sorted(set(expected) ^ set(tensors)) or [
        f"{key} {tuple(tensors[key].shape)}, expected {tuple(parameter.shape)}"
        for key, parameter in expected.items()
        if tensors[key].shape != parameter.shape
    ]
    if problems:
        unload(model, keep=False)
        raise ValueError(f"{weights} does not fit this model: {'; '.join(problems[:3])}")
    if others := [f"{key} is {x.dtype}" for key, x in sorted(tensors.items()) if x.dtype not in FLOATS.values()]:
        unload(model, keep=False)
        raise ValueError(f"{weights} holds weights that are no floats: {'; '.join(others[:3])}")
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(tensors[key])
    return config


def _adapted_paths(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = [key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors]
    return tuple(dict.fromkeys(name for name in names if name))


def _read_config(path: Path) -> tuple[LoraConfig, bool]:
    """The config, and whether the names of the tensors decide which layers are adapted."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; name a folder that holds a LoRA adapter")
    values = read_json(path)
    try:
        targets = values["target_modules"]
        targets = targets if isinstance(targets, str) else tuple(targets)
        if not all(isinstance(target, str) for target in targets):
            raise ValueError(f"target_modules is {targets!r:.80}")
        if type(values["r"]) is not int:
            raise ValueError(f"r is {values['r']!r:.80}")
        config = LoraConfig(targets, values["r"], float(values["lora_alpha"]), float(values.get("lora_dropout", 0.0)))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is no LoRA description: {error}") from error
    unusual: Sequence[str] = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
    if found := [key for key in unusual if values.get(key)]:
        raise ValueError(f"{path} uses {', '.join(found)}, which plain LoRA does not have; merge it with PEFT first")
    is_narrowed = any(values.get(key) is not None for key in ("layers_to_transform", "exclude_modules"))
    return config, is_narrowed or isinstance(targets, str)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
