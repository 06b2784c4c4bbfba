"""Low-rank adapters (LoRA, Hu et al. 2021) for ``nn.Linear`` and GPT-2's ``Conv1D``, in PyTorch alone.

y = x W + b + (alpha / rank) · B A x, with A [rank, in] random, B [out, rank] zero and W frozen. Adapters are saved in
PEFT's format, so its users can load them and we can load theirs. This module knows nothing about training.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ppo.io.files import naming, read_json
from ppo.lm.backbone import blocks

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraConfig:
    """``targets``: names of modules ("q_proj" is every module whose path ends in ".q_proj"), or one regular expression
    for the whole path, as PEFT's ``target_modules``. ``alpha / rank`` scales the adapter; ``dropout`` is on its input.
    """

    targets: tuple[str, ...] | str
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoraConfig.rank={self.rank} must be at least 1")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ValueError(f"LoraConfig.alpha={self.alpha} must be finite and above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoraConfig.dropout={self.dropout} must lie in [0, 1)")
        if not self.targets:
            raise ValueError("LoraConfig.targets is empty; name at least one module, e.g. ('q_proj', 'v_proj')")

    def matches(self, path: str) -> bool:
        """Whether the module at this path is to be adapted."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, path) is not None
        return any(path == target or path.endswith(f".{target}") for target in self.targets)


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter; ``weight`` and ``bias`` are those of the plain layer it stands for."""

    def __init__(self, base: nn.Linear | Conv1D, config: LoraConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.is_transposed = isinstance(base, Conv1D)  # Conv1D keeps [in, out]
        shape = base.weight.shape[::-1] if self.is_transposed else base.weight.shape
        self.out_features, self.in_features = shape
        device = base.weight.device
        bound = 1 / math.sqrt(self.in_features)  # kaiming_uniform(a=√5), as PEFT and nn.Linear
        start = torch.empty(config.rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, config.rank, device=device))
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        self.is_enabled = True
        self._plain_weight: Tensor | None = None  # the base's own weight while the adapter is merged into it

    @property
    def is_merged(self) -> bool:
        """Whether the base's weight holds the adapter at the moment."""
        return self._plain_weight is not None

    @property
    def weight(self) -> Tensor:
        """The weight that acts now, in the base's layout."""
        if self.is_merged or not self.is_enabled:
            return self.base.weight
        return self.base.weight + self.delta()

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def delta(self) -> Tensor:
        """What the adapter adds to the base's weight, in its layout and type."""
        product = self.scale * (self.lora_B @ self.lora_A)
        return (product.T if self.is_transposed else product).to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        if self.is_merged or not self.is_enabled:
            return result
        dropped = F.dropout(x, self.dropout, self.training).to(self.lora_A.dtype)
        return result + F.linear(self.scale * F.linear(dropped, self.lora_A), self.lora_B).to(result.dtype)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside the ``with``, the layer acts without its adapter; the name by which ``ppo`` knows adapters."""
        if self.is_merged:
            raise ValueError(
                "an adapter that is merged into the weights cannot be switched off; call unmerge(model) first"
            )
        before, self.is_enabled = self.is_enabled, False
        try:
            yield
        finally:
            self.is_enabled = before

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter to the base's weight (once); ``unmerge`` brings the same bits back."""
        if not self.is_merged:
            plain = self.base.weight.detach().clone()
            self.base.weight += self.delta()
            self._plain_weight = plain

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo ``merge``; nothing to do where nothing is merged."""
        if self._plain_weight is not None:
            self.base.weight.copy_(self._plain_weight)
            self._plain_weight = None


def linear_targets(model: nn.Module) -> tuple[str, ...]:
    """Names of all linear layers inside the model's blocks: what an adapter of everything but the ends adapts."""
    found = {path.rpartition(".")[2]: None for block in blocks(model) for path, layer in block.named_modules()
             if isinstance(layer, nn.Linear | Conv1D)}  # fmt: skip
    return tuple(found)


def add_lora(model: nn.Module, config: LoraConfig, *, generator: torch.Generator | None = None) -> list[str]:
    """Freeze the model, put an adapter on every matching layer (in place), and give back their paths.

    ValueError where nothing matches, where a match is no linear layer or shares its weight with another module (a tied
    output layer: merging its adapter would change the input embedding too), or where the model already has adapters.
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
                " adapter would change both; leave it out, or untie them (load with tie_word_embeddings=False)"
            )


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """Path to adapted layer."""
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
    """Turn adapted layers back into plain ones, in place: with the adapter merged in (``keep``) or without it."""
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
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
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
    (folder / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | Path) -> LoraConfig:
    """Put a saved adapter (ours or PEFT's plain LoRA) on a model without adapters, in place, and give back its config.

    Where ``target_modules`` is a regular expression, or PEFT's ``layers_to_transform`` or ``exclude_modules`` left out
    layers that it matches, the file's tensors say which are adapted, and the config that comes back names each of them:
    an expression from a file could be one that never ends, and is not run.

    ValueError for a missing or broken file, a variant of LoRA that is not plain, or tensors that do not fit; the model
    is left without adapters then.
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
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(tensors[key])
    return config


def _adapted_paths(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = [key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors]
    return tuple(dict.fromkeys(name for name in names if name))


def _read_config(path: Path) -> tuple[LoraConfig, bool]:
    """The config, and whether the tensors have to say which layers are adapted."""
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
