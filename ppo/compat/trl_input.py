"""What an old script passes to ``step``: token ids and scores, read and checked.

This module knows numbers and tensors, no models.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def read_ids(tensor: Any, where: str) -> list[int]:
    """The token ids of an integer tensor of one dimension. ``where`` names it in the ValueError for anything else."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 1 or tensor.is_floating_point():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{where} is {shape}: give token ids as an integer tensor of one dimension")
    return [int(i) for i in tensor.tolist()]


def read_score(score: Any, index: int) -> float:
    """The score of response ``index``: a finite number, or a tensor of one element.

    A row of a classifier's logits [B, 1] is such a tensor. Raises ValueError, with the remedy, for anything else.
    """
    shape = tuple(getattr(score, "shape", ()))
    if math.prod(shape) != 1:
        raise ValueError(f"score {index} has the shape {shape}: give one number for each response")
    try:
        number = float(score.item() if shape else score)
    except (TypeError, ValueError, OverflowError) as error:
        remedy = "take the number out of it" if isinstance(score, dict | list | tuple) else "give a number"
        raise ValueError(f"score {index} is {score!r:.60}, a {type(score).__name__}: {remedy}") from error
    if not math.isfinite(number):
        raise ValueError(f"score {index} is {number}: scores must be finite")
    return number
