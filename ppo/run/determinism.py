"""Runs that repeat bit for bit: torch's deterministic algorithms during a step, if the config asks for them.

``Config.seed`` fixes every random draw, with or without this module. On one kind of CPU and with one number of threads
it fixes every bit, too. Only this module touches torch's global switches. docs/numerics.md lists what it cannot fix.
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
    """Within the context torch uses deterministic algorithms. At the end the caller's own settings are restored.

    An operation without a deterministic algorithm causes a warning that names it; on CUDA the sampler's cumulative sum
    is such an operation. An error in its place would make training on CUDA impossible. If the caller had already
    switched these errors on, they stay on. With ``is_on=False`` the context does nothing.
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
    """Run a method under :func:`deterministic_algorithms` if ``config.deterministic`` of its object is True."""

    @wraps(method)
    def run(owner: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with deterministic_algorithms(owner.config.deterministic):
            return method(owner, *args, **kwargs)

    return run
