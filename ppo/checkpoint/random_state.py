"""The states of the global random generators (torch, accelerator, Python, numpy), for rewards that draw from them.

The library itself draws from its own generators. This module knows how states become tensors, and tensors states.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..lm.device import accelerator, of_accelerator

ALWAYS = {"torch", "python", "python_spare"}
"""The states that every machine has. numpy's is missing where somebody put another kind of generator in its place."""


def random_state() -> dict[str, Tensor]:
    """The current states, by name. That of the current accelerator has the name of its kind, such as ``cuda``."""
    version, words, spare = random.getstate()
    name, keys, position, has_spare, numpy_spare = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64, device="cpu"),
        "python_spare": torch.tensor(math.nan if spare is None else spare, dtype=torch.float64, device="cpu"),
    }
    if name == "MT19937":
        words64 = torch.from_numpy(np.asarray(keys, dtype=np.int64))
        tensors["numpy"] = torch.cat([words64, torch.tensor([int(position), int(has_spare)], device="cpu")])
        tensors["numpy_spare"] = torch.tensor(float(numpy_spare), dtype=torch.float64, device="cpu")
    kind = accelerator()
    if kind is not None:
        tensors[kind] = of_accelerator().get_rng_state()
    return tensors


@contextmanager
def undisturbed() -> Iterator[None]:
    """At the end of the context, also after an error, the states are those of its beginning."""
    states = random_state()
    try:
        yield
    finally:
        set_random_state(states)


def set_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Set the states that :func:`random_state` returned. A generator that is not named is left as it is.

    Raises ValueError for a state that its generator does not accept.
    """
    try:
        if "torch" in tensors:
            torch.set_rng_state(tensors["torch"])
        kind = accelerator()
        if kind is not None and kind in tensors:
            of_accelerator().set_rng_state(tensors[kind])
        if "python" in tensors:
            version, *words = tensors["python"].tolist()
            spare = float(tensors["python_spare"])
            random.setstate((version, tuple(words), None if math.isnan(spare) else spare))
        if "numpy" in tensors:
            *keys, position, has_spare = tensors["numpy"].tolist()
            state = ("MT19937", np.array(keys, dtype=np.uint32), position, has_spare, float(tensors["numpy_spare"]))
            np.random.set_state(state)  # noqa: NPY002
    except (RuntimeError, TypeError, ValueError, LookupError, OverflowError) as error:
        raise ValueError(f"the checkpoint holds a random state that cannot be taken: {error}") from error
