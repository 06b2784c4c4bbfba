"""Reading a folder of the training-data extraction challenge: ``{split}_{preprefix,prefix,suffix}.npy``.

The files hold token ids of the GPT-2 vocabulary, one row a passage. Nothing is unpickled, and a header that promises
more than the file holds is an error before any memory is taken. This module knows nothing about models.
"""

from __future__ import annotations

import tokenize
from pathlib import Path

import numpy as np

PARTS = ("preprefix", "prefix", "suffix")
_NPY_ERRORS = (
    ValueError, EOFError, OSError, OverflowError, TypeError, SyntaxError, RecursionError, MemoryError, KeyError,
    tokenize.TokenError,
)  # what numpy raises on a header that is no header  # fmt: skip


def find_split(folder: Path, split: str | None) -> str:
    """The split to read: the given one, else "val", else the only one there; ValueError names what is there."""
    found = sorted(path.name.removesuffix("_prefix.npy") for path in folder.glob("*_prefix.npy"))
    wanted = split or ("val" if "val" in found or len(found) != 1 else found[0])
    if wanted not in found:
        raise ValueError(f"{folder} has no {wanted}_prefix.npy; splits found there: {', '.join(found) or 'none'}")
    return wanted


def read_challenge(folder: Path, split: str, limit: int | None = None) -> dict[str, np.ndarray]:
    """{"preprefix", "prefix", "suffix"} as int64 [rows, tokens]; a missing pre-prefix file gives [rows, 0].

    ValueError for a missing or broken file, a wrong shape or type, or differing numbers of rows.
    """
    arrays = {}
    for part in PARTS:
        path = folder / f"{split}_{part}.npy"
        if part != "preprefix" or path.exists():
            arrays[part] = read_ids(path)
    rows = {part: len(array) for part, array in arrays.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"{folder}: the files of split {split!r} differ in their number of rows: {rows}")
    arrays.setdefault("preprefix", np.zeros((rows["prefix"], 0), dtype=np.int64))
    return {part: arrays[part][:limit].astype(np.int64) for part in PARTS}


def read_ids(path: Path) -> np.ndarray:
    """A memory-mapped [rows, tokens] integer array; ValueError names the file, what it holds and what is expected."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; the folder needs {', '.join(f'*_{part}.npy' for part in PARTS)}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NPY_ERRORS as error:
        raise ValueError(f"{path} is not a readable .npy array of numbers ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu":
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        raise ValueError(f"{path} holds shape {shape}, type {dtype}; expected integers of shape [rows, tokens]")
    if len(array) > path.stat().st_size:  # rows of nothing take no bytes: a header could promise any number
        raise ValueError(f"{path} holds shape {array.shape}, more rows than bytes; expected [rows, tokens]")
    return array
