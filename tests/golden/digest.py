"""Turns folders, metrics and objects into flat dicts of name to digest, so that two source trees can be compared.

A tensor becomes "dtype [shape] SHA-256 of its bytes", a number its shortest exact text. Measures of time, speed and
memory and names of places are left out. This module knows the files of a run, nothing about training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

_CHANGING = ("_s", "_seconds", "_per_second", "_bytes")
_OF_FILES = ("sha256", "state_sha256")  # entries of state.json that follow from the other files


def of_tensor(tensor: Tensor) -> str:
    """Dtype, shape and SHA-256 of the bytes."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)} {hashlib.sha256(raw).hexdigest()[:32]}"


def is_repeatable(metric: str) -> bool:
    """Whether a metric has the same value in a second run."""
    return not metric.startswith("time/") and metric != "generate/seconds" and not metric.endswith(_CHANGING)


def repeatable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a step that have the same value in a second run."""
    return {name: value for name, value in metrics.items() if is_repeatable(name)}


def of_rollout(rollout: Any, name: str) -> dict[str, str]:
    """The tensors and the metrics of a rollout."""
    known = {"prompt_ids", "prompt_mask", "tokens", "mask", "logprobs", "entropy", "is_ended", "values"}
    found = flat({key: getattr(rollout.generation, key) for key in sorted(known)}, f"{name}/generation")
    for key in ("old_logprobs", "old_values", "ref_logprobs", "scores", "kl", "rewards", "advantages", "returns"):
        found |= flat(getattr(rollout, key), f"{name}/{key}")
    return found | flat(rollout.token_rewards, f"{name}/token_rewards") | flat(rollout.metrics, f"{name}/metrics")


def flat(value: Any, name: str) -> dict[str, str]:
    """Anything made of dicts, lists, tensors and numbers, by the path to each leaf."""
    if isinstance(value, Tensor):
        return {name: of_tensor(value)}
    if isinstance(value, Mapping):
        named = {f"{name}/{key}": item for key, item in value.items() if is_repeatable(str(key))}
    elif isinstance(value, (list, tuple)) and any(isinstance(x, (Mapping, list, tuple, Tensor)) for x in value):
        named = {f"{name}/{i}": item for i, item in enumerate(value)}
    else:
        return {name: repr(value)}
    return {path: leaf for key, item in named.items() for path, leaf in flat(item, key).items()}


def of_checkpoint(folder: Path, name: str) -> dict[str, str]:
    """Every tensor of its safetensors files, every entry of state.json, and the SHA-256 of every other file."""
    found: dict[str, str] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = f"{name}/{file.relative_to(folder)}"
        if file.suffix == ".safetensors":
            found |= {f"{place}:{key}": of_tensor(tensor) for key, tensor in load_file(file).items()}
            found[place] = "there"
        elif file.name == "state.json":
            state = json.loads(file.read_text(encoding="utf-8"))
            found |= flat({key: item for key, item in state.items() if key not in _OF_FILES}, place)
        else:
            found[place] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def of_logs(out: Path) -> dict[str, str]:
    """metrics.jsonl and samples.jsonl, by step and name, and the names of the other files."""
    found: dict[str, str] = {}
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found |= flat(repeatable(row), f"metrics/{row['step']}")
    for i, line in enumerate((out / "samples.jsonl").read_text(encoding="utf-8").splitlines()):
        found[f"samples/{i}"] = line
    return found | {f"file/{path.name}": "there" for path in out.iterdir()}
