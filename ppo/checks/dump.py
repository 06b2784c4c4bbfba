"""What a failed check leaves behind: the rows, the run as it was, and what was found. :mod:`ppo.replay` reads it.

    <out>/dumps/step-000003-first_minibatch/
      dump.json          the check, the message, prompts and responses
      rows.safetensors   the rollout or minibatch, and the text to keep that went with it
      trainer/           a checkpoint

The newest three dumps of each check are kept, because each is as large as a checkpoint. A dump holds prompts and
responses, so it is as private as the run's other files. This module judges nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..checkpoint.folder import load_tensors, save_tensors
from ..distributed import OtherProcessError, Processes
from ..io.console import shown_errors
from ..io.files import read_json, write_json
from ..retain import RetainBatch
from ..types import Generation, Rollout, Sample

Record = TypeVar("Record", Rollout, Generation)
KEPT = 3  # dumps of one check
_SAMPLE = ("prompt", "text", "prompt_ids", "ids", "is_ended")
_GENERATION_PREFIX = "generation."
_IDS = ("prompt_ids", "tokens", "context", "retain_ids")
_MASKS = ("prompt_mask", "mask", "action_mask", "retain_mask", "is_ended")


class Dumps:
    """Writes dumps under a run's folder.

    ``folder``: of the run; with None nothing is written. ``save``: writes a checkpoint at a path; all processes must
    call it.
    """

    def __init__(self, folder: Path | None, save: Callable[[Path], object], processes: Processes) -> None:
        self._folder = folder
        self._save = save
        self._processes = processes

    def write(self, check: str, message: str, rollout: Rollout, retain: RetainBatch | None, *, step: int) -> str:
        """Write a dump and return where it is, in words. All processes must call this.

        A dump of the same name is replaced. Before that, the oldest dumps of the same check are deleted, so that
        ``KEPT`` are left with the new one. A full disk raises nothing: every process then returns that there is no
        dump, and why.
        """
        if self._folder is None:
            return "no dump, since the trainer has no folder (out=…)"
        folder = self._folder / "dumps" / f"step-{step:06d}-{check}"
        temporary, is_first = folder.with_name(folder.name + ".tmp"), self._processes.is_first
        try:
            with self._processes.together():
                if is_first:
                    _make_room(folder, check)
            self._save(temporary / "trainer")
            with self._processes.together():
                if is_first:
                    save_tensors(temporary / "rows.safetensors", _all_tensors(rollout, retain))
                    samples = [{name: getattr(sample, name) for name in _SAMPLE} for sample in rollout.samples]
                    found = {"check": check, "message": message, "samples": samples}
                    write_json(temporary / "dump.json", found | {"policy_version": rollout.policy_version})
                    shutil.rmtree(folder, ignore_errors=True)
                    temporary.rename(folder)
        except (OSError, SafetensorError, OtherProcessError) as error:
            if is_first:
                shutil.rmtree(temporary, ignore_errors=True)
            return f"no dump: {error}"
        return f"ppo.replay({str(folder)!r}) computes it once more"


def _make_room(folder: Path, check: str) -> None:
    """Delete the oldest dumps of a check, so that ``KEPT`` are left with ``folder``.

    File times decide, not step numbers: a resumed run may count the same steps again.
    """
    others = [p for p in folder.parent.glob(f"step-*-{check}") if p != folder]
    oldest_first = sorted(others, key=lambda p: p.stat().st_mtime_ns)
    for old in [*oldest_first[: 1 - KEPT], *folder.parent.glob("step-*.tmp")]:
        shutil.rmtree(old)


@shown_errors()
def read_dump(folder: Path) -> tuple[dict[str, Any], Rollout, RetainBatch | None]:
    """The dump.json, the rows and the text to keep of a dump, on the CPU. Raises ValueError that names the damage."""
    found = read_json(folder / "dump.json")
    tensors = load_tensors(folder / "rows.safetensors")
    try:
        samples = [Sample(row={}, **{name: sample[name] for name in _SAMPLE}) for sample in found["samples"]]
        generation = Generation(**_fields_of(tensors, Generation, _GENERATION_PREFIX))
        named = {"ref_logprobs": None, **_fields_of(tensors, Rollout, "")}
        rollout = Rollout(generation=generation, samples=samples, policy_version=_version(found), **named)
        _ = str(found["check"]), str(found["message"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no dump of a check: {error!r}") from error
    if wrong := _wrong_tensors(tensors):
        raise ValueError(f"{folder / 'rows.safetensors'} is damaged: {'; '.join(wrong[:3])}")
    if len(samples) != len(rollout) or not all(_is_sample(sample) for sample in samples):
        raise ValueError(f"{folder / 'dump.json'} is damaged: it does not hold the samples of {len(rollout)} rows")
    retain = RetainBatch(tensors["retain_ids"], tensors["retain_mask"]) if "retain_ids" in tensors else None
    return found, rollout, retain


def _wrong_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the tensors of a dump: their dtypes, and shapes that do not fit each other."""
    responses, prompts = (tensors[_GENERATION_PREFIX + name].shape for name in ("tokens", "prompt_ids"))
    kept = [tensors[name].shape for name in ("retain_ids", "retain_mask") if name in tensors]
    wrong = []
    if any(len(shape) != 2 or not all(shape) for shape in (responses, prompts, *kept)) or responses[0] != prompts[0]:
        wrong.append("the shapes of its rows do not fit each other")
    if len(kept) == 1:
        wrong.append("it holds only one of retain_ids and retain_mask")
    shapes = dict.fromkeys(("scores", "is_ended"), responses[:1])
    shapes |= dict.fromkeys(("prompt_ids", "prompt_mask"), prompts)
    shapes |= dict.fromkeys(("retain_ids", "retain_mask"), kept[0] if kept else responses)
    if (context := tensors.get(_GENERATION_PREFIX + "context")) is not None:
        if context.dim() != 2 or context.shape[1] == 0 or responses[1] % context.shape[1]:
            return [*wrong, f"its context {list(context.shape)} does not divide its tokens {list(responses)}"]
        shapes |= dict.fromkeys(("context", "state_temperatures"), torch.Size((responses[0], context.shape[1])))
    for name, x in tensors.items():
        field = name.removeprefix(_GENERATION_PREFIX)
        dtype = torch.long if field in _IDS else torch.bool if field in _MASKS else None
        dtype, shape = (torch.uint8, x.shape[:2]) if field == "kept_sets" else (dtype, x.shape)
        is_kind = x.dtype == dtype if dtype is not None else x.is_floating_point()
        if not is_kind or shape != shapes.get(field, responses):
            wrong.append(f"{name} is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}")
    return wrong


def _version(found: Mapping[str, Any]) -> int | None:
    """The version of the policy that gave the old log-probs; None where an older dump does not hold it."""
    version = found.get("policy_version")
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def _is_sample(sample: Sample) -> bool:
    ids = (sample.prompt_ids, sample.ids)
    return all(isinstance(row, list) and all(isinstance(i, int) for i in row) for row in ids)


def _all_tensors(rollout: Rollout, retain: RetainBatch | None) -> dict[str, Tensor]:
    """All tensors by name. The output of the frozen blocks is left out: it is large and can be computed again."""
    parts: list[tuple[str, Any]] = [("", rollout), (_GENERATION_PREFIX, rollout.generation)]
    tensors = {
        prefix + field.name: getattr(record, field.name)
        for prefix, record in parts
        for field in fields(record)
        if isinstance(getattr(record, field.name), Tensor) and field.name != "frozen_hidden"
    }
    return tensors | ({} if retain is None else {"retain_ids": retain.ids, "retain_mask": retain.mask})


def _fields_of(tensors: Mapping[str, Tensor], cls: type, prefix: str) -> dict[str, Any]:
    return {field.name: tensors[prefix + field.name] for field in fields(cls) if prefix + field.name in tensors}


def on_device(rollout: Rollout, device: torch.device) -> Rollout:
    """The same rows with every tensor on ``device``."""
    return replace(_moved(rollout, device), generation=_moved(rollout.generation, device))


def _moved(record: Record, device: torch.device) -> Record:
    tensors: dict[str, Any] = {name: x.to(device) for name, x in vars(record).items() if isinstance(x, Tensor)}
    return replace(record, **tensors)
