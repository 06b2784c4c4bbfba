"""What state.json must hold: the names, types and bounds of a checkpoint's numbers.

:mod:`ppo.checkpoint.run_state` checks the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..lm.foreign_code import check_attention
from ..run.limits import Limits
from ..scoring import RunningMoments


def ids_sha256(sequences: Sequence[Sequence[int]]) -> str:
    """Hexadecimal SHA-256 of sequences of token ids; their order and their boundaries count."""
    return hashlib.sha256(json.dumps([list(ids) for ids in sequences]).encode()).hexdigest()


_NUMBERS: dict[str, type | tuple[type, ...]] = {
    "step": int, "num_updates": int, "kl_coef": float, "num_prompts": int, "config": dict, "dtype": str,
    "frozen": (list, type(None)), "attention": (str, dict, type(None)), "device": str, "moments": (dict, type(None)),
    "num_not_finite": (int, type(None)), "prompts_sha256": (str, type(None)), "retain_sha256": (str, type(None)),
}  # fmt: skip


LARGEST_MOMENT = 1e100
"""Bound of the count, mean and sum of squares of the scores: squares of larger ones could overflow. NaN fails too."""
LARGEST_LIMIT = 2**31  # of rows or tokens, which torch counts in 64 bits


def check_numbers(state: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError if state.json lacks something that a trainer needs, or holds it with a wrong type or size."""
    for name, kind in _NUMBERS.items():
        value = state.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise ValueError(f"{file} is damaged: {name} is {value!r:.80}")
    if not isinstance(getattr(torch, state["dtype"], None), torch.dtype):
        raise ValueError(f"{file} is damaged: dtype is {state['dtype']!r:.80}")
    if type(updates := state.get("critic_updates", 0)) is not int or not 0 <= updates <= state["num_updates"]:
        raise ValueError(f"{file} is damaged: critic_updates is {updates!r:.80}")
    try:
        check_attention(state["attention"])
    except ValueError as error:
        raise ValueError(f"{file}: attention is {state['attention']!r:.80}: {error}") from error
    own = state.get("own", {})
    if not isinstance(own, dict) or not all(isinstance(name, str) for pair in own.items() for name in pair):
        raise ValueError(f"{file} is damaged: own is {own!r:.80}")
    _check_best(state.get("best"), file)
    moments, limits = state["moments"], limits_of(state)
    is_wanted = moments is not None or state["config"].get("scale_scores", False)
    if is_wanted and not (
        _is_record(moments, RunningMoments(), (int, float)) and all(abs(x) < LARGEST_MOMENT for x in moments.values())
    ):
        raise ValueError(f"{file} is damaged: moments is {moments!r:.80}")
    if not _is_record(limits, Limits(1, None, None), (int, type(None))) or not all(
        x is None or 0 < x < LARGEST_LIMIT for x in limits.values()
    ):
        raise ValueError(f"{file} is damaged: limits is {limits!r:.80}")


def _check_best(best: Any, file: Path) -> None:
    """The best step is missing where the run names no metric; both of its numbers are None before the first one."""
    if best is None:
        return
    is_record = isinstance(best, dict) and best.keys() == {"value", "step"}
    value, step = (best["value"], best["step"]) if is_record else (0, None)
    is_number = isinstance(value, float) and math.isfinite(value) and type(step) is int and step >= 0
    if not is_number and not (value is None and step is None):
        raise ValueError(f"{file} is damaged: best is {best!r:.80}")


def limits_of(state: Mapping[str, Any]) -> Any:
    """The limits of a checkpoint. Older ones have no ``reference_rows``, or no limits: those get a valid stand-in."""
    found = state.get("limits", asdict(Limits(1, None, None)))
    return {"reference_rows": None} | found if isinstance(found, dict) else found


def _is_record(value: Any, like: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is a dict with the fields of a dataclass, each of one of the types ``kinds``."""
    if not isinstance(value, dict) or value.keys() != asdict(like).keys():
        return False
    return all(isinstance(x, kinds) and not isinstance(x, bool) for x in value.values())
