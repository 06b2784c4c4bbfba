"""A checkpoint that was read: its checked numbers, and the model in it.

:mod:`ppo.checkpoint.folder` knows how the files are kept whole, :mod:`ppo.checkpoint.run_state` what else is in them.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config
from ..distributed.processes import Processes
from ..io.files import naming
from ..io.plain_files import check_plain_files
from ..lm.backbone import end_ids
from ..lm.config_bounds import check_room, read_config
from ..lm.departures import own_class
from ..lm.device import move, resolve_device
from ..lm.kinds import class_of
from ..lm.load import check_causal, check_weights, explained
from ..lm.tokenizer_bounds import read_tokenizer
from .folder import read_state
from .schema import check_numbers
from .weights import TRAINED_WEIGHTS, kind_of, load_exactly, policy_tensors, put_back, rebuild_pruned


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that was read and checked: its folder, its numbers, and the model in it.

    ``device``: where the model is to go; None: where it is. It is there already, unless its weights are to be split.
    """

    folder: Path
    state: dict[str, Any]
    config: Config
    model: nn.Module
    tokenizer: Any | None
    device: torch.device | None = None


def read_snapshot(
    path: Path, model: nn.Module | None, tokenizer: Any | None, device: str | torch.device | None = None
) -> Snapshot:
    """Read a checkpoint, or the newest undamaged one of a folder or of a run's ``out``, and the model in it.

    A run without numbered checkpoints goes on from its best one. ``model``: takes the saved weights where the
    checkpoint holds no plain Hugging Face model, else None. ``tokenizer``: None reads the saved one. ``device``: as in
    :func:`ppo.lm.device.resolve_device`; None is the device of the saved model, or of the given one. Raises ValueError
    that names what is wrong.
    """
    place = None if device is None else resolve_device(device)
    with warnings.catch_warnings():
        if not Processes.current().is_first:
            warnings.simplefilter("ignore")  # process 0 alone warns of damage
        folder, state = read_state(_folder_of(path))
    with naming(folder):
        return _read(folder, state, model, tokenizer, place)


def _folder_of(path: Path) -> Path:
    """Where the checkpoint stands, or the checkpoints, of a path that may be a run's ``out``."""
    numbered, best = path / "checkpoints", path / "best"
    if (path / "state.json").exists():
        return path
    is_kept = any(folder.is_dir() for folder in (best, best.with_name("best.old")))
    if is_kept and not any(found.suffix != ".tmp" for found in numbered.glob("step-*")):
        return best
    return numbered if numbered.is_dir() else path


def check_own(snapshot: Snapshot, own: Mapping[str, str], *, seams: Sequence[str], asker: str) -> None:
    """Raise ValueError where a function of the caller's own was used then and is missing now, or the other way.

    ``own``: the functions of now by seam, as :attr:`RunState.own`; ``seams``: those that ``asker`` takes. A function of
    another name is a RuntimeWarning only, since it may have been moved or renamed. A checkpoint from before there were
    seams says nothing, and takes any.
    """
    saved = snapshot.state.get("own")
    if saved is None:
        return
    for seam in seams:
        then, now = saved.get(seam), own.get(seam)
        if then is not None and now is None:
            raise ValueError(f"{snapshot.folder} was saved with {seam}={then:.200}: pass it to {asker}")
        if then is None and now is not None:
            raise ValueError(f"{snapshot.folder} was saved without {seam}=…, {asker} got {now}: leave it out")
        if then != now:
            text = f"{snapshot.folder} was saved with {seam}={then:.200}, {asker} got {now}"
            warnings.warn(f"{text}: the run goes on otherwise if they differ", RuntimeWarning, stacklevel=5)


def _read(
    folder: Path, state: dict[str, Any], model: nn.Module | None, tokenizer: Any | None, place: torch.device | None
) -> Snapshot:
    config = check_numbers(state, folder / "state.json")
    if place is None and model is None:
        place = _saved_device(state["device"])
    check_plain_files(folder / "model")
    is_split = config.sharding == "fsdp" and Processes.current().count > 1  # whole it may fit no device
    if model is None:
        is_by_name, has_config = ((folder / "model" / name).is_file() for name in (TRAINED_WEIGHTS, "config.json"))
        if not has_config:
            kind = state.get("kind", "model of another kind")
            raise ValueError(
                f"{folder} holds no plain Hugging Face model but a {kind:.200}: pass "
                "model=…, built as it was for the Trainer (for an adapter: its base model with a new adapter); the "
                "weights are read from the checkpoint"
            )
        load = _load_pruned if is_by_name else _load_policy
        model = load(folder / "model", state)
        _check_kind(model, state, folder / "state.json")
        if place is not None and not is_split:
            move(model, place)
    else:
        if place is not None and not is_split:
            move(model, place)
        _warn_of_another_kind(folder, state.get("kind"), kind_of(model))
        check_causal(model, name="model=…")  # runs it, so that what its first forward does to its weights is done
        load_exactly(model, policy_tensors(folder / "model"))
    end_ids(model)  # refuses a damaged eos_token_id here, where the error names the checkpoint
    _freeze(model, state.get("frozen") or (), file=folder / "state.json")
    if tokenizer is None and (folder / "model" / "tokenizer_config.json").is_file():
        tokenizer = explained(
            lambda: read_tokenizer(folder / "model"),
            failure=f"the tokenizer in {folder / 'model'} cannot be loaded",
            remedy="pass tokenizer=…",
        )
    return Snapshot(folder, state, config, model, tokenizer, place)


def _warn_of_another_kind(folder: Path, saved: str | None, given: str) -> None:
    """Another class with weights of the same names may compute something else, or it was only renamed."""
    if saved is not None and saved != given:
        text = f"{folder} was saved from a {saved}, model=… is a {given}: the run goes on otherwise if they differ"
        warnings.warn(text, RuntimeWarning, stacklevel=6)


def _check_kind(model: nn.Module, state: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError for a model of another class than the saved one. A split model's class has a longer name."""
    name, saved = own_class(model).__name__, state.get("kind")
    if saved is not None and name not in saved:
        raise ValueError(f"{file}: kind is {saved!r:.80}, but the model is a {name}")


def _freeze(model: nn.Module, names: Collection[str], *, file: Path) -> None:
    """Freeze the weights of these names and no others. Raises ValueError for a name that is no weight of the model."""
    frozen, known = set(names), {name for name, _ in model.named_parameters()}
    if unknown := sorted(frozen - known):
        kind = type(model).__name__
        raise ValueError(f"{file} is damaged: frozen holds {unknown[0]!r:.80}, which is no weight of {kind}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _load_policy(folder: Path, state: Mapping[str, Any]) -> nn.Module:
    """The policy of a checkpoint that holds a plain Hugging Face folder. Only files of that folder are read."""

    def load() -> nn.Module:
        config = read_config(folder)
        check_room(config, folder)
        model, info = class_of(config).from_pretrained(
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

    model = explained(load, failure=f"the model in {folder} cannot be loaded", remedy="resume an older checkpoint")
    check_causal(model, name=str(folder))
    # A model may change its weights while it is loaded (Youtu), or in its first forward (RWKV): they are as saved now.
    for file in sorted(folder.glob("*.safetensors")):
        put_back(model, file)
    return model


def _load_pruned(folder: Path, state: Mapping[str, Any]) -> nn.Module:
    """The policy of a checkpoint that holds a pruned model by name, and its config."""

    def load() -> nn.Module:
        config = read_config(folder)
        config._attn_implementation = state["attention"]
        model = rebuild_pruned(config, folder).to(getattr(torch, state["dtype"])).eval()
        load_exactly(model, policy_tensors(folder))
        return model

    return explained(load, failure=f"the model in {folder} cannot be loaded", remedy="resume an older checkpoint")


def _saved_device(name: str) -> torch.device:
    """The device of the saved model; with several processes of its kind this process's own.

    Raises ValueError for a device that this machine lacks and for a name that is no device.
    """
    try:
        return resolve_device(name if Processes.current().count == 1 else name.partition(":")[0])
    except ValueError as error:
        raise ValueError(f"it was saved on another machine: {error}; pass device='cpu'") from error
