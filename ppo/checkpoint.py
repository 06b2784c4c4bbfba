"""Checkpoints: a folder that appears whole or not at all, safetensors and JSON only, no pickle.

    <checkpoint>/
      model/                  a plain Hugging Face folder: the policy, its config, the tokenizer
      value.safetensors       value head and separate critic
      reference.safetensors   the frozen reference, if there is one (hard-linked from the checkpoint before)
      optimizer.safetensors   Adam's moments
      rng.safetensors         generator states and the order of the prompts
      state.json              everything that is a number, with a SHA-256 of every other file

A folder is written under a temporary name, flushed to disk and renamed. This module knows files, not training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1


def write_atomically(path: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Let ``fill`` write into a temporary folder and give the content of state.json; then put it at ``path``.

    A kill at any moment leaves either the old folder (maybe as ``<path>.old``, which :func:`read_state` finds) or the
    new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    for leftover in (temporary, old if path.exists() else temporary):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    state = dict(fill(temporary))
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    state["format"] = FORMAT
    state["sha256"] = {str(p.relative_to(temporary)): sha256(p) for p in files}
    (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    for file in [*files, temporary / "state.json", temporary]:
        _flush(file)
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_state(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and state.json of a checkpoint, every file checked against its checksum.

    ``path`` is a checkpoint, or a folder of checkpoints of which the newest good one is taken. Raises ValueError that
    names what is missing or damaged.
    """
    candidates = [path, path.with_name(path.name + ".old"), *reversed(list_checkpoints(path))]
    problems = []
    for folder in candidates:
        if not (folder / "state.json").is_file():
            continue
        try:
            return folder, _checked_state(folder)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems) if problems else f"{path} holds no checkpoint: there is no state.json in it")


def list_checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints ``step-<n>`` of a run's folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit())


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints of a folder."""
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors; tensors that share memory are written apart."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; a damaged file is a ValueError that names it."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that never changes; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)  # it may be another name of the same file, which a copy would write into
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rng_tensors() -> dict[str, Tensor]:
    """The state of torch's global generators, for reward functions that draw from them."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore_rng(tensors: Mapping[str, Tensor]) -> None:
    """Take back what :func:`rng_tensors` gave."""
    if "torch" in tensors:
        torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def _checked_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        checksums = dict(state["sha256"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'state.json'} is damaged: {error!r}") from error
    if state.get("format") != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {state.get('format')!r}; this version reads {FORMAT}")
    for name, expected in checksums.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder / 'state.json'} names {name!r}, which lies outside the checkpoint")
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if sha256(file) != expected:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one in state.json")
    return dict(state)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
