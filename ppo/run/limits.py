"""When memory runs out: the same work with half as many rows at a time, and a word about it.

Neither the slots of a rollout, nor the rows that pass the reference, nor the microbatches of an update change what is
computed, beyond rounding, so a run need not end for them. What was lowered stays lowered, and belongs to a checkpoint;
several processes go on with the smallest of each after every step. This module knows sizes, not models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from ..config import Config

Result = TypeVar("Result")


@dataclass
class Limits:
    """What passes the model at once: as the config says, until memory ran out. None: no limit of this kind.

    ``reference_rows``: sequences that the reference is asked about, besides ``config.reference_batch_tokens``.
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
        """Of each kind the smallest that there is."""

        def least(name: str) -> Any:  # an int, or None where no process has such a limit
            return min((value for one in limits if (value := getattr(one, name)) is not None), default=None)

        return cls(**{field.name: least(field.name) for field in fields(cls)})

    def take(self, others: Limits) -> None:
        """Go on with the limits of another record, in place: whoever holds this one sees them."""
        for field in fields(self):
            setattr(self, field.name, getattr(others, field.name))

    def halve_slots(self, rows: int) -> bool:
        """Fewer than ``rows`` sequences side by side; False where it is one already."""
        before = min(self.rollout_slots, rows)
        self.rollout_slots = max(before // 2, 1)
        return _said("rollout_slots", before, self.rollout_slots)

    def halve_reference(self, rows: int) -> bool:
        """Fewer than ``rows`` sequences pass the reference at once; False where it is one already."""
        before = min(self.reference_rows or rows, rows)
        self.reference_rows = max(before // 2, 1)
        return _said("reference_rows", before, self.reference_rows)

    def halve_microbatch(self, rows: int) -> bool:
        """Fewer of a minibatch's ``rows`` at a time; False where it is one already."""
        if self.microbatch_tokens is not None:
            before, self.microbatch_tokens = self.microbatch_tokens, max(self.microbatch_tokens // 2, 1)
            return _said("microbatch_tokens", before, self.microbatch_tokens)
        before = min(self.microbatch or rows, rows)
        self.microbatch = max(before // 2, 1)
        return _said("microbatch", before, self.microbatch)


def retry_smaller(action: Callable[[], Result], shrink: Callable[[], bool]) -> Result:
    """``action()``; where memory runs out in it, again after ``shrink()``, as long as that says that it helped."""
    while True:
        try:
            return action()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not shrink():
                raise
        # Here the error is gone, and with it the frames that held on to the tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's, the CPU allocator's or Python's way to say that memory has run out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _said(name: str, before: int, after: int) -> bool:
    if after < before:
        warnings.warn(f"out of memory: going on with {name}={after} instead of {before}", RuntimeWarning, stacklevel=4)
    return after < before
