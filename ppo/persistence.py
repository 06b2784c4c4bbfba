"""What of a trainer goes into a checkpoint, and how it comes back.

Everything that a step depends on is here: weights, critic, reference, Adam's moments, schedule, KL coefficient, running
moments, generator states, the order of the prompts. :mod:`ppo.checkpoint` knows how the files are kept whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .adapters import has_adapter
from .checkpoint import (
    link_or_copy,
    load_tensors,
    prune,
    read_state,
    restore_rng,
    rng_tensors,
    save_tensors,
    write_atomically,
)
from .config import Config

if TYPE_CHECKING:
    from .trainer import Trainer


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that was read and checked: its folder, its numbers, and the model in it."""

    folder: Path
    state: dict[str, Any]
    config: Config
    model: nn.Module
    tokenizer: Any | None


def save(trainer: Trainer, path: Path) -> Path:
    """Write a checkpoint at ``path``, replacing what is there; returns ``path``."""

    def fill(folder: Path) -> dict[str, Any]:
        _save_policy(trainer, folder)
        critic = {name: p for name, p in trainer.actor.state_dict().items() if _is_critic(name)}
        save_tensors(folder / "value.safetensors", critic)
        _save_reference(trainer, folder)
        save_tensors(folder / "optimizer.safetensors", trainer.optimizer.state_tensors())
        generators = {"trainer": trainer.generator.get_state(), "prompt_order": trainer.stream.order}
        save_tensors(folder / "rng.safetensors", rng_tensors() | generators)
        return _numbers(trainer)

    write_atomically(path, fill)
    return path


def save_numbered(trainer: Trainer) -> Path:
    """Write ``out/checkpoints/step-<n>`` and delete all but the newest few. Raises ValueError without ``out``."""
    if trainer.out is None:
        raise ValueError("the trainer has no folder to save in: pass out=… to the Trainer, or call save(path)")
    folder = trainer.out / "checkpoints"
    path = save(trainer, folder / f"step-{trainer.step:06d}")
    prune(folder, trainer.config.keep_checkpoints)
    return path


def load(path: Path, model: nn.Module | None, tokenizer: Any | None) -> Snapshot:
    """Read a checkpoint (or the newest of a folder) and the model in it. Raises ValueError that says what is wrong."""
    nested = path / "checkpoints"
    folder, state = read_state(nested if nested.is_dir() and not (path / "state.json").exists() else path)
    config = Config.from_dict(state["config"])
    if model is None:
        if not (folder / "model" / "config.json").is_file():
            raise ValueError(
                f"{folder} holds no plain Hugging Face model but a {state.get('kind', 'model of another kind')}: pass "
                "model=… as it was made for the Trainer (of an adapter, its base with a new one); the weights are read"
            )
        model = AutoModelForCausalLM.from_pretrained(
            folder / "model",
            dtype=getattr(torch, state["dtype"]),
            attn_implementation=state["attention"],
            use_safetensors=True,
        ).to(state["device"])
    else:
        _load_exactly(model, _policy_tensors(folder / "model"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in state.get("frozen", ()))
    if tokenizer is None and (folder / "model" / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return Snapshot(folder, state, config, model, tokenizer)


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Put everything but the policy's weights back into a freshly built trainer."""
    folder, state = snapshot.folder, snapshot.state
    if state["num_prompts"] != len(trainer.prompts):
        raise ValueError(
            f"{folder} was saved with {state['num_prompts']} prompts, resume got {len(trainer.prompts)}: pass the same"
        )
    missing = trainer.actor.load_state_dict(load_tensors(folder / "value.safetensors"), strict=False)
    if missing.unexpected_keys:
        raise ValueError(f"{folder / 'value.safetensors'} holds unknown weights: {missing.unexpected_keys}")
    if trainer.frozen is not None and trainer.frozen is not trainer.model:
        _load_exactly(trainer.frozen, load_tensors(folder / "reference.safetensors"))
    trainer.optimizer.load_state_tensors(load_tensors(folder / "optimizer.safetensors"), state["num_updates"])
    generators = load_tensors(folder / "rng.safetensors")
    trainer.generator.set_state(generators["trainer"])
    trainer.stream.order = generators["prompt_order"]
    restore_rng(generators)
    trainer.step = state["step"]
    trainer.kl_controller.coef = state["kl_coef"]
    if trainer.scorer.moments is not None:
        vars(trainer.scorer.moments).update(state["moments"])
    trainer.last_checkpoint = folder


def _numbers(trainer: Trainer) -> dict[str, Any]:
    config = getattr(trainer.model, "config", None)
    return {
        "step": trainer.step,
        "num_updates": trainer.optimizer.num_updates,
        "kl_coef": trainer.kl_controller.coef,
        "moments": asdict(trainer.scorer.moments) if trainer.scorer.moments is not None else None,
        "num_prompts": len(trainer.prompts),
        "config": trainer.config.to_dict(),
        "dtype": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        "frozen": [name for name, p in trainer.model.named_parameters() if not p.requires_grad],
        "kind": type(trainer.model).__name__ + (" with an adapter" if has_adapter(trainer.model) else ""),
        "attention": getattr(config, "_attn_implementation", None),
        "device": str(trainer.device),
    }


def _save_policy(trainer: Trainer, folder: Path) -> None:
    """A plain Hugging Face folder where the model is one, else all weights by name; the tokenizer beside it.

    By name, what is frozen has a file of its own, which all checkpoints of a run share.
    """
    target = folder / "model"
    if isinstance(trainer.model, PreTrainedModel) and not has_adapter(trainer.model):
        trainer.model.save_pretrained(target, max_shard_size="1000GB")
    else:
        target.mkdir()
        parameters = dict(trainer.model.named_parameters())
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        save_tensors(target / "policy.safetensors", trained)
        frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
        _save_once(trainer, folder, "model/frozen.safetensors", frozen)
    if trainer.tokenizer is not None:
        trainer.tokenizer.save_pretrained(target)


def _save_reference(trainer: Trainer, folder: Path) -> None:
    """The frozen copy never changes, so a later checkpoint shares the file of the one before."""
    if trainer.frozen is None or trainer.frozen is trainer.model:
        return
    _save_once(trainer, folder, "reference.safetensors", dict(trainer.frozen.named_parameters()))


def _save_once(trainer: Trainer, folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Tensors that never change: linked from the checkpoint before, if there is one."""
    if trainer.last_checkpoint is not None and (trainer.last_checkpoint / name).is_file():
        link_or_copy(trainer.last_checkpoint / name, folder / name)
    else:
        save_tensors(folder / name, tensors)


def _policy_tensors(folder: Path) -> dict[str, Tensor]:
    files = [folder / name for name in ("policy.safetensors", "frozen.safetensors")]
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
        parameter.copy_(tensors[name])


def _is_critic(name: str) -> bool:
    return name.split(".")[0] in ("critic", "value_head")
