"""Reading a folder of the training-data extraction challenge: ``{split}_{preprefix,prefix,suffix}.npy``.

The files hold token ids of the GPT-2 vocabulary, one passage per row. Nothing is unpickled. A header that declares more
than the file holds raises an error before any memory is allocated. This module knows nothing about models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppo.io.rows import read_ids
from ppo.io.visible import visible

PARTS = ("preprefix", "prefix", "suffix")


def find_split(folder: Path, split: str | None) -> str:
    """The split to read: the given one, else "val", else the only one. ValueError lists the splits in the folder."""
    found = sorted(path.name.removesuffix("_prefix.npy") for path in folder.glob("*_prefix.npy"))
    wanted = split or ("val" if "val" in found or len(found) != 1 else found[0])
    if wanted not in found:
        names = visible(", ".join(found)) or "none"
        raise ValueError(f"{visible(str(folder))} has no {visible(wanted)}_prefix.npy; splits found there: {names}")
    return wanted


def read_challenge(folder: Path, split: str, limit: int | None = None) -> dict[str, np.ndarray]:
    """{"preprefix", "prefix", "suffix"} as int64 [rows, tokens]. A missing pre-prefix file gives [rows, 0].

    ``limit`` keeps the first rows only. ValueError for a missing or broken file, a wrong shape or dtype, or files with
    different numbers of rows.
    """
    arrays = {}
    for part in PARTS:
        path = folder / f"{split}_{part}.npy"
        if part != "preprefix" or path.exists():
            if not path.is_file():
                raise ValueError(
                    f"{visible(str(path))} is missing; the folder needs {', '.join(f'*_{part}.npy' for part in PARTS)}"
                )
            arrays[part] = read_ids(path)
    rows = {part: len(array) for part, array in arrays.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"{visible(str(folder))}: the files of split {split!r} differ in their number of rows: {rows}")
    arrays.setdefault("preprefix", np.zeros((rows["prefix"], 0), dtype=np.int64))
    return {part: arrays[part][:limit].astype(np.int64) for part in PARTS}
