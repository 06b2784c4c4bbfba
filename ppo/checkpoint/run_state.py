"""What of a trainer goes into a checkpoint, and how it comes back.

Everything that a step depends on is here: weights, critic, reference, Adam's moments, schedule, KL coefficient, running
moments, generator states, the order of the prompts. :mod:`ppo.checkpoint` knows how the files are kept whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..config import Config
from ..distributed.processes import Processes
from ..distributed.sharding import gathered, split_like
from ..io.files import naming
from ..lm.adapters import has_adapter
from ..lm.backbone import end_ids
from ..lm.config_bounds import check_room, read_config
from ..lm.load import check_weights, explained
from .folder import (
    link_or_copy,
    list_checkpoints,
    load_tensors,
    prune,
    read_state,
    save_tensors,
    unchanged,
    write_atomically,
)
from .random_state import random_state, set_random_state
from .schema import check_numbers, ids_sha256, numbers, take_numbers

if TYPE_CHECKING:
    from ..trainer import Trainer

_REFERENCE, _FROZEN = "reference.safetensors", "frozen.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that was read and checked: its folder, its numbers, and the model in it."""

    folder: Path
    state: dict[str, Any]
    config: Config
    model: nn.Module
    tokenizer: Any | None


def save(trainer: Trainer, path: Path) -> Path:
    """Write a checkpoint at ``path``, replacing what is there; returns ``path``.

    All processes must call, since weights that are split are gathered; the first one writes.
    """
    policy = gathered(trainer.model.state_dict(keep_vars=True))
    critic = gathered({name: p for name, p in trainer.actor.state_dict().items() if _is_critic(name)})
    moments = gathered(trainer.optimizer.state_tensors())
    old = trainer.processes.first(lambda: _old(trainer, _REFERENCE))
    reference = trainer.frozen if trainer.frozen is not trainer.model else None
    frozen = gathered(_weights(reference)) if reference is not None and old is None else {}
    generators = {"trainer": trainer.generator.get_state(), "prompt_order": trainer.stream.order}
    for rank, states in enumerate(trainer.processes.all_gather(random_state())):
        generators |= {_of_rank(name, rank): state for name, state in states.items()}

    def fill(folder: Path) -> dict[str, Any]:
        _write_policy(trainer, folder / "model", policy)
        save_tensors(folder / "value.safetensors", critic)
        if reference is not None:
            _write_once(old, folder / _REFERENCE, frozen)
        save_tensors(folder / "optimizer.safetensors", moments)
        save_tensors(folder / "rng.safetensors", generators)
        return numbers(trainer)

    with trainer.processes.together():
        if trainer.processes.is_first:
            write_atomically(path, fill)
    return path


def save_model(trainer: Trainer, folder: Path) -> None:
    """Write the policy alone, as a checkpoint holds it; all processes must call."""
    policy = gathered(trainer.model.state_dict(keep_vars=True))
    with trainer.processes.together():
        if trainer.processes.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            _write_policy(trainer, folder, policy)


def save_numbered(trainer: Trainer) -> Path:
    """Write ``out/checkpoints/step-<n>`` and delete all but the newest few. Raises ValueError without ``out``."""
    if trainer.out is None:
        raise ValueError("the trainer has no folder to save in: pass out=… to the Trainer, or call save(path)")
    folder = trainer.out / "checkpoints"
    path = save(trainer, folder / f"step-{trainer.step:06d}")
    with trainer.processes.together():
        if trainer.processes.is_first:
            prune(folder, trainer.config.keep_checkpoints, newest=path)
    return path


def finish_pruning(trainer: Trainer) -> None:
    """Delete the checkpoints that a run should have deleted when it was killed, if it goes on from its newest one."""
    newest = trainer.last_checkpoint
    if trainer.out is not None and newest is not None and trainer.processes.is_first:
        folder = trainer.out / "checkpoints"
        if newest.parent == folder and list_checkpoints(folder)[-1:] == [newest]:
            prune(folder, trainer.config.keep_checkpoints, newest=newest)


def load(path: Path, model: nn.Module | None, tokenizer: Any | None, device: str | None = None) -> Snapshot:
    """Read a checkpoint (or the newest of a folder) and the model in it. Raises ValueError that names what is wrong."""
    nested = path / "checkpoints"
    with warnings.catch_warnings():
        if not Processes.current().is_first:
            warnings.simplefilter("ignore")  # what was damaged is said once
        folder, state = read_state(nested if nested.is_dir() and not (path / "state.json").exists() else path)
    with naming(folder):
        return _read(folder, state, model, tokenizer, device)


def _read(
    folder: Path, state: dict[str, Any], model: nn.Module | None, tokenizer: Any | None, device: str | None
) -> Snapshot:
    check_numbers(state, folder / "state.json")
    config = Config.from_dict(state["config"])
    if model is None:
        if not (folder / "model" / "config.json").is_file():
            raise ValueError(
                f"{folder} holds no plain Hugging Face model but a {state.get('kind', 'model of another kind')}: pass "
                "model=… as it was made for the Trainer (of an adapter, its base with a new one); the weights are read"
            )
        model = _load_policy(folder / "model", state).to(_device(device or state["device"]))
    else:
        _load_exactly(model, _policy_tensors(folder / "model"))
    end_ids(model)  # what a damaged config names as one is refused here, by the checkpoint's name
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in (state.get("frozen") or ()))
    if tokenizer is None and (folder / "model" / "tokenizer_config.json").is_file():
        tokenizer = explained(
            lambda: AutoTokenizer.from_pretrained(folder / "model", local_files_only=True, trust_remote_code=False),
            failure=f"the tokenizer in {folder / 'model'} cannot be loaded",
            remedy="pass tokenizer=…",
        )
    return Snapshot(folder, state, config, model, tokenizer)


def check_texts(trainer: Trainer, snapshot: Snapshot) -> None:
    """Raise ValueError for a trainer with other prompts than those that were saved: their order is one of places.

    Other texts to keep are a RuntimeWarning only, since a model may have written them, and another machine rounds
    otherwise. A checkpoint of format 1 knows no more than how many prompts there were.
    """
    folder, state = snapshot.folder, snapshot.state
    count, prompts, retain = (state.get(name) for name in ("num_prompts", "prompts_sha256", "retain_sha256"))
    if count != len(trainer.prompts):
        raise ValueError(f"{folder} was saved with {count} prompts, resume got {len(trainer.prompts)}: pass the same")
    if prompts is not None and prompts != ids_sha256([prompt.ids for prompt in trainer.prompts]):
        raise ValueError(f"{folder} was saved with other prompts, or in another order: pass the same ones as then")
    if retain is not None and trainer.retain_loss is not None and retain != ids_sha256(trainer.retain_loss.pieces):
        warnings.warn(
            f"{folder} was saved with other texts to keep: the run goes on otherwise", RuntimeWarning, stacklevel=3
        )


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Put everything but the policy's weights back into a freshly built trainer of as many prompts."""
    with naming(snapshot.folder):
        _restore(trainer, snapshot.folder, snapshot.state)


def _restore(trainer: Trainer, folder: Path, state: dict[str, Any]) -> None:
    critic, own = load_tensors(folder / "value.safetensors"), trainer.actor.state_dict()
    if unfit := sorted(name for name, x in critic.items() if name not in own or own[name].shape != x.shape):
        raise ValueError(f"{folder / 'value.safetensors'} holds weights that do not fit the value function: {unfit}")
    trainer.actor.load_state_dict({name: split_like(x, own[name]) for name, x in critic.items()}, strict=False)
    if trainer.frozen is not None and trainer.frozen is not trainer.model:
        _load_exactly(trainer.frozen, load_tensors(folder / _REFERENCE))
    trainer.optimizer.load_state_tensors(load_tensors(folder / "optimizer.safetensors"), state["num_updates"])
    generators = load_tensors(folder / "rng.safetensors")
    _take_generators(trainer, generators, folder / "rng.safetensors")
    # A process that was not there has its own generator still: it must not repeat another one's numbers.
    rank = trainer.processes.rank
    set_random_state({name: generators[of] for name in random_state() if (of := _of_rank(name, rank)) in generators})
    take_numbers(trainer, state)
    trainer.last_checkpoint = folder


def _load_policy(folder: Path, state: Mapping[str, Any]) -> nn.Module:
    """The policy of a checkpoint that is a plain Hugging Face folder, from its own files alone."""

    def load() -> nn.Module:
        config = read_config(folder)
        check_room(config, folder)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            dtype=getattr(torch, state["dtype"]),
            attn_implementation=state["attention"],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        check_weights(info["missing_keys"], name=str(folder))
        loaded: nn.Module = model
        return loaded

    return explained(load, failure=f"the model in {folder} cannot be loaded", remedy="resume an older checkpoint")


def _take_generators(trainer: Trainer, tensors: Mapping[str, Tensor], file: Path) -> None:
    """The trainer's own generator and the order of the prompts. Raises ValueError for what is neither."""
    order = tensors.get("prompt_order", torch.empty(0))
    if order.dtype != torch.long or order.dim() != 1 or bool(((order < 0) | (order >= len(trainer.prompts))).any()):
        raise ValueError(f"{file} is damaged: it holds no order of {len(trainer.prompts)} prompts")
    try:
        trainer.generator.set_state(tensors["trainer"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it holds no state of the trainer's generator") from error
    trainer.stream.order = order


def _device(name: str) -> torch.device:
    """Where the model was; of several GPUs the one that this process has, where it is one of several processes.

    Raises ValueError for a device that is not there: a GPU of another machine, or what is no device at all.
    """
    try:
        saved = torch.device(name)
    except RuntimeError:
        saved = torch.device("meta")
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    is_gpu = here is not None and saved.type == here.type and (saved.index or 0) < torch.accelerator.device_count()
    if not is_gpu and (saved.type != "cpu" or saved.index):
        raise ValueError(f"the device is {name!r:.80}, which is not there: pass device='cpu'")
    return saved if Processes.current().count == 1 else torch.device(saved.type)


def _of_rank(name: str, rank: int) -> str:
    return name if rank == 0 else f"{name}.{rank}"


def _write_policy(trainer: Trainer, target: Path, state: dict[str, Tensor]) -> None:
    """A plain Hugging Face folder where the model is one, else all weights by name; the tokenizer beside it.

    By name, what is frozen has a file of its own, which all checkpoints of a run share.
    """
    if isinstance(trainer.model, PreTrainedModel) and not has_adapter(trainer.model):
        trainer.model.save_pretrained(target, state_dict=state, max_shard_size="1000GB")
    else:
        target.mkdir(exist_ok=True)
        parameters = dict(trainer.model.named_parameters())
        save_tensors(target / "policy.safetensors", {n: state[n] for n, p in parameters.items() if p.requires_grad})
        _write_once(
            _old(trainer, f"model/{_FROZEN}"),
            target / _FROZEN,
            {n: state[n] for n, p in parameters.items() if not p.requires_grad},
        )
    if trainer.tokenizer is not None:
        trainer.tokenizer.save_pretrained(target)


def _old(trainer: Trainer, name: str) -> Path | None:
    """What never changes lies in the checkpoint before, if there is one, and a later one shares that file.

    A file that was damaged meanwhile is not shared, or it would be taken for whole from then on.
    """
    return None if trainer.last_checkpoint is None else unchanged(trainer.last_checkpoint, name)


def _write_once(old: Path | None, target: Path, tensors: Mapping[str, Tensor]) -> None:
    if old is not None:
        link_or_copy(old, target)
    else:
        save_tensors(target, tensors)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters by name, shared ones once."""
    return {name: p.detach() for name, p in model.named_parameters()}


def _policy_tensors(folder: Path) -> dict[str, Tensor]:
    files = [folder / name for name in ("policy.safetensors", _FROZEN)]
    if not files[0].is_file():
        raise ValueError(f"{folder} holds a plain Hugging Face model: resume without model=…")
    return {name: tensor for file in files if file.is_file() for name, tensor in load_tensors(file).items()}


@torch.no_grad()
def _load_exactly(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    if parameters.keys() != tensors.keys():
        difference = sorted(parameters.keys() ^ tensors.keys())
        raise ValueError(f"the checkpoint's weights do not fit {type(model).__name__}; they differ in {difference[:5]}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"the checkpoint's {name} is {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
        parameter.copy_(split_like(tensors[name], parameter))


def _is_critic(name: str) -> bool:
    return name.split(".")[0] in ("critic", "value_head")
