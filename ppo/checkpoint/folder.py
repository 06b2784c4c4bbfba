"""Checkpoints: a folder that appears whole or not at all, safetensors and JSON only, no pickle.

    <checkpoint>/
      model/                  a plain Hugging Face folder: the policy, its config, the tokenizer
      value.safetensors       value head and separate critic
      reference.safetensors   the frozen copy, if there is one (hard-linked from the checkpoint before)
      optimizer.safetensors   Adam's moments
      rng.safetensors         generator states and the order of the prompts
      state.json              everything that is a number, with a SHA-256 of every other file and of itself

A folder is written under a temporary name, flushed to disk and renamed. The checkpoints of a run share the files that
never change, so damage to such a file damages all of them. This module knows files, not training.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..io.console import shown_errors
from ..io.files import flush, naming_file, read_json
from ..io.plain_files import check_plain, open_plain
from ..lm.device import FLOATS

FORMAT = 2
READABLE = (1, 2)
OPTIMIZER, RANDOM = "optimizer.safetensors", "rng.safetensors"
"""The formats that can be read. In format 1, state.json has no checksum of itself; only the other files are checked."""


def write_atomically(path: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Write a checkpoint at ``path``: ``fill`` writes files into a folder and returns the content of state.json.

    The folder is temporary until it is whole. A kill at any moment leaves either the old checkpoint (maybe as
    ``<path>.old``, which :func:`read_state` finds) or the new one. Raises OSError that names the checkpoint when it
    cannot be written, on a full disk say. Then the temporary folder is deleted and ``path`` is unchanged.
    """
    temporary, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (temporary, old if path.exists() else temporary):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        _fill(temporary, fill)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise OSError(
            number, f"the checkpoint {path} could not be written ({reason}); the earlier ones are unchanged"
        ) from error
    with naming_file(path):
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Raise ValueError where something stands that is no checkpoint: it would be deleted. An empty folder may be."""
    if not path.exists() or (path / "state.json").is_file():
        return
    held = sorted(found.name for found in path.iterdir()) if path.is_dir() else None
    if held != []:
        what = "a file" if held is None else f"a folder with {', '.join(held[:3])}"
        raise ValueError(f"{path} is {what}, and a checkpoint would take its place: name another folder")


def make_folder(path: Path) -> None:
    """Make a folder where there is none. Raises ValueError for a path where none can be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path} is no folder, and none can be made there ({error.strerror}): name another") from error


def _fill(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Write all files of a checkpoint, then state.json with their checksums, and flush everything to disk."""
    state = json.loads(json.dumps(fill(folder)))  # the checksum is of what will be read back
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    state["format"] = FORMAT
    state["sha256"] = {str(p.relative_to(folder)): sha256(p) for p in files}
    state["state_sha256"] = state_sha256(state)
    (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    folders = [p for p in folder.rglob("*") if p.is_dir()]
    for written in [*files, folder / "state.json", *folders, folder]:
        flush(written)


@shown_errors()
def read_state(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the state.json of a checkpoint, after every file was checked against its checksum.

    ``path``: a checkpoint, or a folder of checkpoints, of which the newest undamaged one is taken; a RuntimeWarning
    names the damage in newer ones. Raises ValueError that names what is missing or damaged.
    """
    problems: list[str] = []
    for folder in _candidates(path):
        try:
            state = _checked_state(folder)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}: going on from {folder}", RuntimeWarning, stacklevel=4)
        return folder, state
    raise ValueError("; ".join(problems) if problems else f"{path} holds no checkpoint: there is no state.json in it")


def _candidates(path: Path) -> list[Path]:
    """The folders to try, in this order. A numbered one without state.json is tried too, so that it is reported."""
    single = [path, path.with_name(path.name + ".old")]
    return [p for p in single if (p / "state.json").is_file()] + list_checkpoints(path)[::-1]


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints ``step-<n>`` in a folder, lowest number first."""
    found = (p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdecimal())
    return sorted(found, key=_number)


def prune(folder: Path, keep: int, *, newest: Path) -> None:
    """Delete all checkpoints of a folder but ``newest`` and the ``keep`` - 1 before it, and what a kill left partial.

    Checkpoints with higher numbers than ``newest`` are deleted too: the run went back to an earlier step than theirs.
    """
    known = list_checkpoints(folder)
    kept = [p for p in known if _number(p) <= _number(newest)][-keep:]
    for old in [*(p for p in known if p not in kept), *folder.glob("step-*.tmp"), *folder.glob("step-*.old")]:
        shutil.rmtree(old)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Tensors that share memory are written as separate tensors.

    A link that has the name gives way to the file. Raises OSError that names the file when it cannot be written.
    """
    if path.is_symlink():
        path.unlink()
    written = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with naming_file(path):
            save_file(written, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)[:200], str(path)) from error


@shown_errors()
def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ValueError that names a missing or damaged file."""
    check_plain(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to a file that never changes, or a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)  # it may be a link to a file of another checkpoint, which a copy would overwrite
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(state: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of the content of state.json without its own checksum; the order of keys does not matter."""
    content = {name: value for name, value in state.items() if name != "state_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def unchanged(folder: Path, name: str) -> Path | None:
    """The path of a checkpoint's file if its checksum is still right, else None: a damaged file must not be shared."""
    file = folder / name
    try:
        is_whole = file.is_file() and _read_state_file(folder)["sha256"].get(name) == sha256(file)
    except (ValueError, OSError):  # a file that cannot be read counts as damaged
        return None
    return file if is_whole else None


def _read_state_file(folder: Path) -> dict[str, Any]:
    """The content of state.json without its own checksum, which is checked. Raises ValueError that names the damage."""
    state = read_json(folder / "state.json")
    checksums = state.get("sha256") if isinstance(state, dict) else None
    if not isinstance(checksums, dict):
        raise ValueError(f"{folder / 'state.json'} is damaged: it holds no checksums")
    if type(state.get("format")) is not int or state["format"] not in READABLE:
        raise ValueError(
            f"{folder} has checkpoint format {state.get('format')!r:.80}; this version reads {READABLE[0]} to {FORMAT}"
        )
    is_sealed = state["format"] != 1 or "state_sha256" in state
    if is_sealed and state.pop("state_sha256", None) != state_sha256(state):
        raise ValueError(f"{folder / 'state.json'} is damaged: its content does not have the SHA-256 that it names")
    return dict(state)


def _checked_state(folder: Path) -> dict[str, Any]:
    """The content of state.json, after all files of the folder were checked against it."""
    state = _read_state_file(folder)
    checksums = state["sha256"]
    for name, expected in checksums.items():
        file = folder / name
        if "\0" in name or not _real(file).is_relative_to(_real(folder)):
            raise ValueError(f"{folder / 'state.json'} names {name!r}, which lies outside the checkpoint")
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if sha256(file) != expected:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one in state.json")
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".json") and str(file.relative_to(folder)) not in {*checksums, "state.json"}:
            raise ValueError(f"{file} is not a file of this checkpoint: state.json has no checksum of it")
    for name in checksums:
        if name.endswith(".safetensors") and name != RANDOM:
            _check_numbers(folder / name, may_be_infinite=Path(name).name != OPTIMIZER)
    return state


def _real(path: Path) -> Path:
    """Where a path leads; links that go round in a circle lead to themselves."""
    return Path(os.path.realpath(path))


def _check_numbers(file: Path, *, may_be_infinite: bool) -> None:
    """Raise ValueError for a file with NaN in it, or moments that are infinite: its run was broken when it was saved.

    One tensor is in memory at a time.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                if tensor.dtype not in FLOATS.values():  # what uses it checks its type
                    continue
                if bool((tensor.isnan() if may_be_infinite else ~tensor.isfinite()).any()):
                    raise ValueError(f"{file}: {name} is NaN or infinite, because the run was broken when it was saved")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
