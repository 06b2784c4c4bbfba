"""The weights of a checkpoint: written once where they never change, read back exactly.

This module knows models and their files, not what a run is.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import GenerationConfig, PreTrainedModel

from ..distributed.sharding import split_like
from ..io.files import naming_file
from ..lm.adapters import has_adapter
from ..lm.backbone import is_split
from ..lm.departures import forward_hooks, has_own_forward, own_class
from ..lm.kinds import build, is_of_config
from ..lm.safetensors_header import check_kind_of_numbers
from ..policy import Policy
from .folder import link_or_copy, load_tensors, save_tensors

REFERENCE, VALUE = "reference.safetensors", "value.safetensors"
TRAINED_WEIGHTS, FROZEN_WEIGHTS = "policy.safetensors", "frozen.safetensors"  # of no plain Hugging Face model


def write_policy(
    model: Any, target: Path, state: Mapping[str, Tensor], *, shared: Path | None, is_alone: bool = False
) -> None:
    """Write a plain Hugging Face folder if the model is a plain one, else all weights ``state`` by name.

    A plain one is what transformers builds from the config, so that nothing else is needed to read it back. Frozen
    weights by name are in a file of their own, which all checkpoints of a run share; ``shared``: that file of an
    earlier checkpoint, or None. Buffers are written with the trained weights. ``is_alone``: nobody but the model's
    own class will read it, so any class of transformers' kind gets a Hugging Face folder.
    """
    if is_plain(model) or (is_alone and _has_own_folder(model)):
        _save_pretrained(model, target, dict(state))
        return
    target.mkdir(exist_ok=True)
    if is_pruned(model):  # its config and its masks say how it was made
        model.config.save_pretrained(target)
        model.generation_config.to_json_file(target / "generation_config.json")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name, _ in model.named_parameters()]
    kept = {name: state[name] for name in state.keys() & {name for name, _ in model.named_buffers()}}
    save_tensors(target / TRAINED_WEIGHTS, {name: state[name] for name in names if name in trained} | kept)
    write_once(shared, target / FROZEN_WEIGHTS, {name: state[name] for name in names if name not in trained})


def kind_of(model: nn.Module) -> str:
    """What a policy is, in words for messages, by which a resumed run knows it again."""
    adapted, changed = has_adapter(model), _changed(model, besides=prune.BasePruningMethod)
    return (
        type(model).__name__ + (" with an adapter" if adapted else "") + (" with hooks of its own" if changed else "")
    )


def is_plain(model: nn.Module) -> bool:
    """Whether transformers builds this model from its config alone: class, modules and shapes, no adapter, no hook."""
    return not has_adapter(model) and not _changed(model) and _parts(model) == _parts_of_config(model)


def _has_own_folder(model: nn.Module) -> bool:
    return isinstance(model, PreTrainedModel) and not has_adapter(model) and not is_pruned(model)


def is_pruned(model: nn.Module) -> bool:
    """Whether a model is plain but for ``torch.nn.utils.prune``: a weight is ``…_orig`` times the buffer ``…_mask``."""
    masks = {name.removesuffix("_mask") for name, _ in model.named_buffers() if name.endswith("_mask")}
    parts = {
        name.removesuffix("_orig") if name.removesuffix("_orig") in masks else name: part
        for name, part in _parts(model).items()
    }
    is_changed = _changed(model, besides=prune.BasePruningMethod)
    return bool(masks) and not has_adapter(model) and not is_changed and parts == _parts_of_config(model)


def rebuild_pruned(config: Any, folder: Path) -> nn.Module:
    """The model of a folder that :func:`write_policy` wrote for a pruned one; its weights are not read yet."""
    model = build(config)
    for name, mask in policy_tensors(folder).items():
        if name.endswith("_mask"):
            path, _, weight = name.removesuffix("_mask").rpartition(".")
            prune.custom_from_mask(model.get_submodule(path), weight, mask)  # type: ignore[no-untyped-call]
    model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    pruned: nn.Module = model
    return pruned


def _changed(model: nn.Module, besides: type | tuple[type, ...] = ()) -> bool:
    """Whether a module has a forward hook, none of ``besides``, or a forward of its own, which no config knows of.

    The forwards that split weights get while processes make them together are gone after the step.
    """
    modules = [*model.modules()]
    hooks = [hook for module in modules for hook in forward_hooks(module) if not isinstance(hook, besides)]
    return bool(hooks) or (not is_split(model) and any(map(has_own_forward, modules)))


def _parts(model: nn.Module) -> dict[str, object]:
    """The class of every module and the shape of every weight, by name."""
    modules: dict[str, object] = {f"{name}:": own_class(module) for name, module in model.named_modules()}
    return modules | {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _parts_of_config(model: Any) -> dict[str, object] | None:
    """The parts of the model that transformers builds from a model's config, without memory; None for another class."""
    kind: Any = own_class(model)
    if not isinstance(model, PreTrainedModel) or not is_of_config(kind, model.config):
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built = kind(copy.deepcopy(model.config))
        built.tie_weights()  # transformers 5.0 leaves this out on "meta"
        return _parts(built)


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Within the context what a writer of models or tokenizers raises on a full disk is an OSError naming the folder.

    There safetensors raises an error of its own, and tokenizers a bare Exception. Any other error passes as it is.
    """
    try:
        with naming_file(folder):
            yield
    except OSError:
        raise
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, SafetensorError):
            raise
        raise OSError(errno.EIO, " ".join(str(error).split())[:200], str(folder)) from error


def _save_pretrained(model: Any, target: Path, state: dict[str, Tensor]) -> None:
    """``save_pretrained``; a generation config that transformers loads but refuses to write is written as it is.

    Raises OSError that names the folder, or a file in it, for what cannot be written.
    """
    own = model.generation_config
    try:
        if own is not None:
            own.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig()
    try:
        with naming_folder(target):
            model.save_pretrained(target, state_dict=state, max_shard_size="1000GB")
            if model.generation_config is not own:
                own.to_json_file(target / "generation_config.json")
    finally:
        model.generation_config = own


def attention_of(model: Any) -> str | dict[str, str | None] | None:
    """How a model computes attention, as transformers' ``attn_implementation`` takes it; None if it has no say.

    A model of several parts may do it otherwise in a part: then the parts' ways by name, and the whole's as "".
    """
    config = getattr(model, "config", None)
    whole = getattr(config, "_attn_implementation", None)
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    ways = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    return whole if all(way == whole for way in ways.values()) else {"": whole, **ways}


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
    """Put weights by name into a model. Raises ValueError, before any is put, where names, shapes or kinds differ.

    Buffers are put back too, where they were saved.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    parameters |= {name: buffer for name, buffer in model.named_buffers() if name in tensors}
    if parameters.keys() != tensors.keys():
        difference = sorted(parameters.keys() ^ tensors.keys())
        raise ValueError(f"the checkpoint's weights do not fit {type(model).__name__}; they differ in {difference[:5]}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"the checkpoint's {name} is {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
        check_kind_of_numbers(tensors[name], parameter, name=f"the checkpoint's {name}")
    for name, parameter in parameters.items():
        parameter.copy_(split_like(tensors[name], parameter))


@torch.no_grad()
def put_back(model: nn.Module, file: Path) -> None:
    """Put the weights of a safetensors file into a model that was loaded from it, where name and shape are the same.

    transformers writes some weights under other names, or several as one; those stay as they were loaded. One tensor is
    in memory at a time.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with safe_open(file, framework="pt") as saved:
        for name in own.keys() & set(saved.keys()):
            tensor = saved.get_tensor(name)
            check_kind_of_numbers(tensor, own[name], name=f"{file}: {name}")
            if tensor.shape == own[name].shape and not torch.equal(tensor, own[name].cpu()):
                own[name].copy_(tensor)


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
    for name, x in saved.items():
        check_kind_of_numbers(x, own[name], name=f"{file}: {name}")
    policy.actor.load_state_dict({name: split_like(x, own[name]) for name, x in saved.items()}, strict=False)


def restore_frozen(frozen: nn.Module, folder: Path) -> None:
    """Read the frozen copy of a checkpoint. Raises ValueError for weights that do not fit."""
    load_exactly(frozen, load_tensors(folder / REFERENCE))
