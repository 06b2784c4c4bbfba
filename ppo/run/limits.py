"""When memory runs out, a run does the same work with half as many rows at a time, and warns.

The slots of a rollout, the rows that the reference is asked about at once and the microbatches of an update change
results by rounding only, so a run can lower them and go on. A lowered limit stays lowered and is saved in checkpoints.
Several processes agree on the smallest of each limit after every step. This module knows sizes, not models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from ..config import Config
from ..lm.device import of_accelerator

Result = TypeVar("Result")


@dataclass
class Limits:
    """How much goes through a model at once: as the config says, until memory runs out. None: no limit of this kind.

    ``reference_rows``: how many sequences the reference is asked about at once. ``config.reference_batch_tokens``
    limits their tokens as well.
    """

    rollout_slots: int
    microbatch: int | None
    microbatch_tokens: int | None
    reference_rows: int | None = None

    @classmethod
    def of(cls, config: Config) -> Limits:
        return cls(config.rollout_slots, config.microbatch, config.microbatch_tokens)

    @classmethod
    def smallest(cls, limits: Sequence[Limits]) -> Limits:
        """The smallest of each kind of limit. None (no limit) is larger than any number."""

        def least(name: str) -> Any:  # an int, or None where no process has such a limit
            return min((value for one in limits if (value := getattr(one, name)) is not None), default=None)

        return cls(**{field.name: least(field.name) for field in fields(cls)})

    def take(self, others: Limits) -> None:
        """Copy the limits of ``others`` into this object, so that everything that holds this object sees them."""
        for field in fields(self):
            setattr(self, field.name, getattr(others, field.name))

    def halve_slots(self, rows: int) -> bool:
        """Generate half as many of ``rows`` sequences side by side. False if it is one already."""
        before = min(self.rollout_slots, rows)
        self.rollout_slots = max(before // 2, 1)
        return _warn_if_lowered("rollout_slots", before, self.rollout_slots)

    def halve_reference(self, rows: int) -> bool:
        """Ask the reference about half as many of ``rows`` sequences at once. False if it is one already."""
        before = min(self.reference_rows or rows, rows)
        self.reference_rows = max(before // 2, 1)
        return _warn_if_lowered("reference_rows", before, self.reference_rows)

    def halve_microbatch(self, rows: int) -> bool:
        """Train on half as many rows, or tokens, at once, in a minibatch of ``rows``. False if it is one already."""
        if self.microbatch_tokens is not None:
            before, self.microbatch_tokens = self.microbatch_tokens, max(self.microbatch_tokens // 2, 1)
            return _warn_if_lowered("microbatch_tokens", before, self.microbatch_tokens)
        before = min(self.microbatch or rows, rows)
        self.microbatch = max(before // 2, 1)
        return _warn_if_lowered("microbatch", before, self.microbatch)


def retry_smaller(action: Callable[[], Result], shrink: Callable[[], bool]) -> Result:
    """``action()``. When memory runs out in it, call ``shrink()`` and try again, as long as that returns True."""
    while True:
        try:
            return action()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not shrink():
                raise
        # Outside the except block the error is gone, and with it the frames that kept the tensors alive.
        device_module = of_accelerator()
        if device_module is not None:
            device_module.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error of a device, of torch's CPU allocator or of Python says that memory has run out."""
    words = ("DefaultCPUAllocator", "MPS backend out of memory")  # of RuntimeErrors that have no type of their own
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def _warn_if_lowered(name: str, before: int, after: int) -> bool:
    if after < before:
        warnings.warn(f"out of memory: going on with {name}={after} instead of {before}", RuntimeWarning, stacklevel=4)
    return after < before
