"""Measured passes in a folder, in portions: a scan that was killed goes on after its last whole portion.

Passes with the same tokens are one, with one number, wherever they stand. What is written holds no token and no text:
the columns of :class:`.measure.Columns`, and a digest of the tokens, by which a changed corpus is noticed. A portion is
measured by itself, so that its numbers do not depend on where a scan was broken off. This module knows token ids and
files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ppo.io.files import flush
from ppo.io.plain_files import check_plain
from ppo.io.visible import visible

from .measure import Columns, Meter

PORTION_TOKENS = 2**15
_FIELDS = ("right", "ends", "logprobs", "top_k")
_MODE = 0o600


class Store:
    """The passes that are to be measured, and the columns of those that were.

    ``folder``: of the portions; it is made where it is missing. ``meter``: None where all of them were measured, and a
    missing one is an error. ``portion_tokens``: when a portion is full. ``show``:
    called after each portion with its tokens and with whether it was measured now.
    """

    def __init__(
        self,
        folder: Path,
        meter: Meter | None,
        *,
        portion_tokens: int = PORTION_TOKENS,
        show: Callable[[int, bool], None] = lambda tokens, is_new: None,
    ) -> None:
        self._folder, self._meter, self._most, self._show = folder, meter, portion_tokens, show
        self._numbers: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._sizes: list[int] = []
        self._begins: list[int] = []  # the number of each portion's first pass
        self._waiting: list[tuple[list[int], int]] = []
        self._tokens = 0
        self._opened: tuple[int, list[Columns]] = (-1, [])
        if meter is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, ids: Sequence[int] | np.ndarray, first: int) -> int:
        """The number of a pass with these tokens, scored from ``first`` on. One that is new is measured in its turn."""
        array = np.asarray(ids, dtype=np.int64)
        key = blake2b(array.tobytes() + first.to_bytes(8, "little"), digest_size=16).digest()
        number = self._numbers.setdefault(key, len(self._keys))
        if number == len(self._keys):
            self._keys.append(key)
            self._sizes.append(len(array))
            self._waiting.append((array.tolist(), first))
            self._tokens += len(array)
            if self._tokens >= self._most:
                self.finish()
        return number

    def finish(self) -> None:
        """Measure what waits, as a portion of its own. Nothing may be added to it afterwards."""
        if not self._waiting:
            return
        path = self._path(len(self._begins))
        digest = blake2b(b"".join(self._keys[-len(self._waiting) :]), digest_size=16).hexdigest()
        is_new = not path.exists()
        if is_new:
            self._write(path, digest)
        elif self._digest(path) != digest:
            raise ValueError(
                f"{visible(str(path))} was measured on another text: the corpus or the tokenizer has changed since; "
                "start again in another --out"
            )
        self._begins.append(len(self._keys) - len(self._waiting))
        tokens, self._waiting, self._tokens = self._tokens, [], 0
        self._show(tokens, is_new)

    def columns(self, number: int) -> Columns:
        """The columns of a pass that was measured."""
        portion = bisect_right(self._begins, number) - 1
        if self._opened[0] != portion:
            self._opened = portion, self._read(self._path(portion))
        return self._opened[1][number - self._begins[portion]]

    def sample(self, count: int, *, least: int = 1) -> list[int]:
        """At most ``count`` passes of at least ``least`` tokens that their digests choose, by number.

        The sample depends on the passes alone, not on their order.
        """
        long = [number for number, size in enumerate(self._sizes) if size >= least]
        return sorted(sorted(long, key=self._keys.__getitem__)[:count])

    def _path(self, portion: int) -> Path:
        return self._folder / f"{portion:06d}.safetensors"

    def _write(self, path: Path, digest: str) -> None:
        if self._meter is None:
            raise ValueError(f"{visible(str(path))} is missing: that scan was not finished on this corpus")
        measured: list[Columns | None] = [None] * len(self._waiting)
        passes, firsts = zip(*self._waiting, strict=True)
        for i, columns in self._meter.columns(passes, firsts):
            measured[i] = columns
        done = [columns for columns in measured if columns is not None]
        arrays = {name: np.concatenate([getattr(columns, name) for columns in done]) for name in _FIELDS}
        arrays["lengths"] = np.array([len(columns) for columns in done], dtype=np.int64)
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        save_file(arrays, temporary, metadata={"digest": digest})
        temporary.chmod(_MODE)
        flush(temporary)
        temporary.rename(path)
        flush(path.parent)

    def _digest(self, path: Path) -> str | None:
        check_plain(path)
        try:
            with safe_open(path, framework="numpy") as file:
                return dict(file.metadata() or {}).get("digest")
        except SafetensorError as error:
            raise ValueError(f"{visible(str(path))} is damaged: {error}; delete it to measure it again") from error

    def _read(self, path: Path) -> list[Columns]:
        check_plain(path)
        try:
            with safe_open(path, framework="numpy") as file:
                lengths = file.get_tensor("lengths")
                whole = [np.split(file.get_tensor(name), np.cumsum(lengths)[:-1]) for name in _FIELDS]
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{visible(str(path))} is damaged: {error}; delete it to measure it again") from error
        return [Columns(*columns) for columns in zip(*whole, strict=True)]
