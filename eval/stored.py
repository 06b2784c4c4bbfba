"""The evaluation of a run's folder as it was stored: read, and held against its shape.

Somebody may have sent the folder, or an editor may have changed it. So what a report reads has the kinds that it needs,
or a ValueError names the file and the field before a page is begun. This module computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppo.io.console import shown_errors
from ppo.io.files import read_json
from ppo.io.plain import finite
from ppo.io.visible import visible
from ppo.log import read_jsonl

from .along import is_curve

TEXTS = ("id", "group", "kind", "prompt", "truth")
"""What the record of every passage holds as text."""


@shown_errors()
def read_results(folder: Path) -> dict[str, Any]:
    """The content of evaluation.json: meta, summary, before, after. ValueError when it is missing or damaged."""
    path = folder / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"{visible(str(path))} does not exist: run the attack there first")
    content = read_json(path)
    results = _object(content, f"{visible(str(path))} is damaged: its content")
    for name in ("meta", "before"):
        if name not in results:
            raise ValueError(f"{visible(str(path))} is damaged: {KeyError(name)!r}")
    _object(results["meta"], f"{visible(str(path))} is damaged: meta")
    for side in ("before", "after"):
        if results.get(side) is not None:
            _check_side(results[side], f"{visible(str(path))} is damaged: {side}")
    return results


@shown_errors()
def read_passages(path: Path) -> list[dict[str, Any]]:
    """The paired records of passages.jsonl. ValueError names the file, the record and the field of what is damaged."""
    records = read_jsonl(path)
    for number, record in enumerate(records, start=1):
        where = f"{visible(str(path))} is damaged: record {number}"
        for name in TEXTS:
            _require(isinstance(record.get(name), str), f"{where}, {name}", record.get(name), "a text")
        secrets = record.get("secrets", [])  # of a folder of an earlier version: none
        is_list = isinstance(secrets, list) and all(isinstance(secret, str) for secret in secrets)
        _require(is_list, f"{where}, secrets", secrets, "a list of texts")
        for side in ("before", "after"):
            if side == "before" or record.get(side) is not None:
                _check_output(record.get(side), f"{where}, {side}")
    return records


@shown_errors()
def read_attacks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The attacks in attacks.json by side, "before" and "after"; {} without the file. ValueError when it is damaged."""
    path = folder / "attacks.json"
    if not path.is_file():
        return {}
    where = f"{visible(str(path))} is damaged"
    content = _object(read_json(path), f"{where}: its content")
    found = {}
    for side in ("before", "after"):
        if side in content:
            attacks = _object(content[side], f"{where}: {side}").get("attacks")
            _require(isinstance(attacks, list), f"{where}: {side}, attacks", attacks, "a list")
            for number, attack in enumerate(attacks, start=1):
                check_attack(attack, f"{where}: {side}, attack {number}")
            found[side] = attacks
    return found


def check_attack(attack: Any, where: str) -> None:
    """Hold the summary of an attack against its shape, as far as a verdict reads it."""
    attack = _object(attack, where)
    _require(isinstance(attack.get("name"), str), f"{where}, name", attack.get("name"), "a text")
    for group, numbers in _object(attack.get("groups"), f"{where}, groups").items():
        for name, value in _object(numbers, f"{where}, {group!r:.60}").items():
            if name == "intervals":
                check_intervals(value, f"{where}, {group!r:.60}, intervals")
            else:
                _require(finite(value) is not None, f"{where}, {group!r:.60}, {name!r:.60}", value, "a number")
    for group, gaps in _object(attack.get("over_never", {}), f"{where}, over_never").items():
        for name, gap in _object(gaps, f"{where}, over_never, {group!r:.60}").items():
            of = f"{where}, over_never, {name!r:.60}"
            gap = _object(gap, of)
            _require(finite(gap.get("value")) is not None, f"{of}, value", gap.get("value"), "a number")
            interval = gap.get("interval")
            is_right = _is_interval(interval) and all(finite(end) is not None for end in interval)
            _require(is_right, f"{of}, interval", interval, "two numbers")


def check_intervals(intervals: Any, where: str) -> None:
    """Hold intervals by name against their shape: two numbers each, NaN among them."""
    for key, value in _object(intervals, where).items():
        _require(_is_interval(value), f"{where}, {key!r:.60}", value, "two numbers")


def _check_side(side: Any, where: str) -> None:
    """Hold the evaluation of one model against its shape."""
    side = _object(side, where)
    kinds: dict[str, tuple[Callable[[Any], bool], str]] = {
        "summary": (_is_number, "a number"),
        "intervals": (_is_interval, "two numbers"),
        "definitions": (lambda value: isinstance(value, str), "a text"),
        "signatures": (lambda value: isinstance(value, str), "a text"),
    }
    for name, (is_right, wanted) in kinds.items():
        for key, value in _object(side.get(name), f"{where}, {name}").items():
            _require(is_right(value), f"{where}, {name}, {key!r:.60}", value, wanted)
    for key, value in _object(side.get("by_place", {}), f"{where}, by_place").items():  # older folders have none
        _require(is_curve(value), f"{where}, by_place, {key!r:.60}", value, "shares")


def _check_output(output: Any, where: str) -> None:
    """Hold what one model wrote for a passage against its shape: its text, and numbers or None."""
    for name, value in _object(output, where).items():
        if name != "output" and value is not None:  # a short suffix has no numbers of what comes after 12 tokens
            _require(_is_number(value), f"{where}, {name!r:.60}", value, "a number")
    _require(isinstance(output.get("output"), str), f"{where}, output", output.get("output"), "a text")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    _require(isinstance(value, dict), where, value, "an object")
    return dict(value)


def _is_number(value: Any) -> bool:
    return finite(value) is not None or isinstance(value, float | bool)  # a float may be NaN


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _require(is_right: bool, where: str, value: Any, wanted: str) -> None:
    if not is_right:
        raise ValueError(f"{where} is {value!r:.60}, not {wanted}")
