"""The same bits on repeat: torch's deterministic algorithms for the time of a step, where the config asks for them.

What is drawn is fixed by ``Config.seed`` either way, and on one CPU of one kind, with as many threads, so is every bit.
This module is the one place that touches torch's global switches. What it cannot fix is listed in docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def deterministic_algorithms(is_on: bool) -> Iterator[None]:
    """Within the context torch chooses deterministic algorithms; afterwards the caller's own settings are back.

    An operation that has none warns and names itself (on CUDA the cumulative sum of the sampler is one): an error would
    leave no way to train there. With ``is_on=False`` nothing is touched.
    """
    if not is_on:
        yield
        return
    is_enabled, is_warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    is_benchmarking = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=is_warning or not is_enabled)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_enabled, warn_only=is_warning)
        torch.backends.cudnn.benchmark = is_benchmarking


def reproducible(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """A method that runs under :func:`deterministic_algorithms` where the config of its object says so."""

    @wraps(method)
    def run(owner: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with deterministic_algorithms(owner.config.deterministic):
            return method(owner, *args, **kwargs)

    return run
