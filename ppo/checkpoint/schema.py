"""What state.json must hold: the names, types and bounds of a checkpoint's numbers.

:mod:`ppo.config` knows the ranges of a config's fields. :mod:`ppo.checkpoint.run_state` checks the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import Config
from ..io.fields import LARGEST_FLOAT
from ..io.files import naming
from ..lm.device import FLOATS
from ..lm.foreign_code import check_attention
from ..run.limits import Limits
from ..scoring import RunningMoments


def ids_sha256(sequences: Sequence[Sequence[int]]) -> str:
    """Hexadecimal SHA-256 of sequences of token ids; their order and their boundaries count."""
    return hashlib.sha256(json.dumps([list(ids) for ids in sequences]).encode()).hexdigest()


LARGEST_COUNT = 2**53
"""Bound of steps, updates and scores: whole numbers up to here are exact as floats, which logs hold them as."""
LARGEST_COEF = LARGEST_FLOAT  # of KL, as of every number of a config
LARGEST_MOMENT = 1e100
"""Bound of the mean and the sum of squares of the scores: squares of larger ones could overflow. NaN fails too."""
LARGEST_LIMIT = 2**31  # of rows or tokens, which torch counts in 64 bits
LONGEST_NAME = 1000
_LATER = {"best", "critic_updates", "kind", "limits", "own"}  # older checkpoints lack them
_UNSEALED = {"frozen", "num_not_finite", "prompts_sha256", "retain_sha256"}  # those of format 1 lack these, too
_FILES = {"format", "sha256", "state_sha256"}  # ppo.checkpoint.folder checks them


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME


def _is_within(value: Any, bound: float) -> bool:
    return type(value) in (int, float) and abs(value) < bound  # NaN is within nothing


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_list_of_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_name, value)) and len(set(value)) == len(value))


def _is_attention(value: Any) -> bool:
    ways = value if isinstance(value, dict) and "" in value else {"": value}
    return all(way is None or _is_name(way) for way in ways.values())


def _is_moments(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != asdict(RunningMoments()).keys():
        return False
    count, mean, squares = (value[name] for name in ("count", "mean", "squares"))
    if not (_is_count(count) and _is_within(mean, LARGEST_MOMENT) and _is_within(squares, LARGEST_MOMENT)):
        return False
    return bool(squares >= 0 and (count > 0 or mean == squares == 0))


def _is_best(value: Any) -> bool:
    """Both numbers are None before the first step that has the metric."""
    if not isinstance(value, dict) or value.keys() != {"value", "step"}:
        return False
    number, step = value["value"], value["step"]
    return (number is None and step is None) or (
        isinstance(number, float) and math.isfinite(number) and _is_count(step)
    )


def _is_own(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_name, [*value, *value.values()]))


_COUNT = (_is_count, "a whole number from 0 to 2**53")
_SHA256 = (_is_sha256, "a SHA-256: 64 hexadecimal digits")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": _COUNT,
    "num_updates": _COUNT,
    "num_prompts": _COUNT,
    "num_not_finite": _COUNT,
    "critic_updates": _COUNT,
    "kl_coef": (lambda x: isinstance(x, float) and 0 <= x < LARGEST_COEF, f"a number from 0 to {LARGEST_COEF:g}"),
    "moments": (
        lambda x: x is None or _is_moments(x),
        f"null, or count, mean and squares of scores, within {LARGEST_MOMENT:g}; 0 and 0 where none was counted",
    ),
    "best": (_is_best, "value and step: a number and a whole one, or null and null"),
    "limits": (lambda x: isinstance(x, dict), "an object"),
    "config": (lambda x: isinstance(x, dict), "an object"),
    "prompts_sha256": _SHA256,
    "retain_sha256": (lambda x: x is None or _is_sha256(x), f"null, or {_SHA256[1]}"),
    "dtype": (lambda x: isinstance(x, str) and x in FLOATS, f"one of {', '.join(FLOATS)}"),
    "frozen": (_is_list_of_names, "null, or a list of names, each once"),
    "kind": (_is_name, "the name of a class"),
    "attention": (_is_attention, "null, a name, or names by part"),
    "device": (_is_name, "the name of a device, such as cpu or cuda:1"),
    "own": (_is_own, "names by seam"),
}
"""Each field of state.json: what it may be, as a function and in words."""


def check_numbers(state: Mapping[str, Any], file: Path) -> Config:
    """The config in state.json. Raises ValueError, with the name of the field, if one is missing or out of its range.

    A field that this version does not know is an error too: it would be lost in the next checkpoint.
    """
    for name in state:
        if name not in _FIELDS and name not in _FILES:
            raise ValueError(f"{file} holds {name!r:.80}, which this version does not know")
    for name, (is_right, wanted) in _FIELDS.items():
        if name not in state and (name in _LATER or (name in _UNSEALED and state["format"] == 1)):
            continue
        if name not in state:
            raise ValueError(f"{file} is damaged: {name} is missing")
        if not is_right(state[name]):
            raise _damage(file, name, state[name], wanted)
    with naming(file):
        config = Config.from_dict(state["config"])
    try:
        check_attention(state["attention"])
    except ValueError as error:
        raise ValueError(f"{file}: attention is {state['attention']!r:.80}: {error}") from error
    _check_together(state, config, file)
    if (limits := limits_of(state)) is not None:
        _check_limits(limits, config, file)
    return config


def _check_together(state: Mapping[str, Any], config: Config, file: Path) -> None:
    """Raise ValueError for fields that are right alone and wrong beside another, or beside the config."""
    if (critic := state.get("critic_updates", 0)) > state["num_updates"]:
        raise _damage(file, "critic_updates", critic, f"at most num_updates={state['num_updates']}")
    if critic > 0 and config.critic_warmup_steps == 0:
        raise _damage(file, "critic_updates", critic, "0 as config.critic_warmup_steps is")
    if config.scale_scores and state["moments"] is None:
        raise _damage(file, "moments", None, "given, for config.scale_scores is true")
    if state["kl_coef"] > 0 and config.kl_coef == 0:
        raise _damage(file, "kl_coef", state["kl_coef"], "0 as config.kl_coef is, which leaves out the reference")
    if state["format"] > 1 and (state["retain_sha256"] is None) != (config.retain_coef == 0):
        wanted = f"there just where config.retain_coef={config.retain_coef:g} is above 0"
        raise _damage(file, "retain_sha256", state["retain_sha256"], wanted)
    best = state.get("best")
    if (best is None) != (config.best_metric is None):
        raise _damage(file, "best", best, f"there just where config.best_metric={config.best_metric!r:.80} is a name")
    if best is not None and best["step"] is not None and best["step"] >= state["step"]:
        raise _damage(file, "best", best, f"of a step before step={state['step']}")


def _check_limits(limits: Mapping[str, Any], config: Config, file: Path) -> None:
    """Raise ValueError for limits that no run can have: they begin as the config says, and only fall."""
    start = asdict(Limits.of(config))
    if limits.keys() != start.keys():
        raise _damage(file, "limits", limits, f"an object of {', '.join(start)}")
    for name, value in limits.items():
        most = LARGEST_LIMIT if start[name] is None else start[name]
        is_number = type(value) is int and 0 < value <= most
        if not is_number and not (value is None and start[name] is None):
            wanted = f"a whole number from 1 to {most}" + (", or null" if start[name] is None else "")
            raise _damage(file, f"limits.{name}", value, wanted)


def _damage(file: Path, name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{file} is damaged: {name} is {value!r:.80}; it must be {wanted}")


def limits_of(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The limits of a checkpoint, None where it is older than they are. Older ones have no ``reference_rows``."""
    return {"reference_rows": None} | state["limits"] if "limits" in state else None
