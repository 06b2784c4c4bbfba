"""The points of a comparison as they were stored: read, and held against their shape and their number.

Somebody may have sent the folder. So what a page reads has the kinds and the ranges that it needs, or a ValueError
names the file and the field before a page is begun. :mod:`eval.points` knows the files. This module computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ppo.io.fields import check_types
from ppo.io.plain import finite
from ppo.io.visible import visible

from .along import is_curve
from .pareto import ATTACK, attacked
from .points import Point, place_of, stored_points
from .settings import Settings
from .stored import check_attack, check_intervals
from .values import check_values

MOST_VARIANTS = 500  # of method, value of its knob and number of records: each is a row of every table
MOST_COLUMNS = 500  # of attacks: groups times variants
MOST_NUMBER = 1e12
MOST_TRIED = 100  # values of a knob
_NAME = re.compile(r"[A-Za-z0-9_.+-][A-Za-z0-9_.+ -]{0,59}")
_NEEDED = tuple(
    f"forget/{quantity}"
    for quantity in ("exact", "bleu", "true_token_p", "empty", "loop", "garbled", "distinct_2_ratio", "length_ratio")
)
_DRAWN = {
    *_NEEDED, "never/bleu", "never/true_token_p", "never/length_ratio", "keep/exact", "utility/cloze",
    *(f"{group}/{quantity}" for group in ("forget", "forget_holdout") for quantity in
      ("exact", "exact_sampled", "discoverable")),
}  # fmt: skip
_BUDGET = ("updates", "most_updates", "update_rows", "rows", "forget_tokens", "keep_tokens", "look_every")
_KEPT = ("texts", "tokens", "own", "records")
_PERPLEXITY = "holdout/perplexity"


def compared_points(folder: Path) -> list[Point]:
    """All points of a comparison, sorted by key. ValueError names the file, the field and what it holds.

    An original is there for every number of records.
    """
    points = stored_points(folder)
    for point in points:
        check_point(point, f"{place_of(folder, point['key'])} is damaged")
    originals = {point["size"] for point in points if point["kind"] == "original"}
    for point in points:
        if point["size"] not in originals:
            where = place_of(folder, point["key"])
            size = point["size"]
            raise ValueError(f"{where} has the size {size}: there is no point of the original model for {size} records")
    variants = {(point["method"], point["value"], point["size"]) for point in points}
    columns = {name for point in points for name in attacked(point) if name.startswith(ATTACK)}
    for count, most, what in ((len(variants), MOST_VARIANTS, "variants"), (len(columns), MOST_COLUMNS, "attacks")):
        if count > most:
            raise ValueError(f"{visible(str(folder))} holds {count} different {what}; a page shows at most {most}")
    return points


def check_point(point: Mapping[str, Any], where: str) -> None:
    """Hold one point against its shape. ValueError begins with ``where``."""
    for name in ("method", "kind"):
        _require(_is_name(point.get(name)), f"{where}: {name}", point.get(name), "a name of at most 60 plain signs")
    knob = point.get("knob")
    _require(knob == "" or _is_name(knob), f"{where}: knob", knob, 'a name of at most 60 plain signs, or ""')
    _require(_is_bounded(point.get("value")), f"{where}: value", point.get("value"), "a number")
    _require(
        isinstance(point.get("is_default"), bool), f"{where}: is_default", point.get("is_default"), "true or false"
    )
    for name in ("seed", "size"):
        is_count = type(point.get(name)) is int and 0 <= point[name] <= MOST_NUMBER
        _require(is_count, f"{where}: {name}", point.get(name), "a whole number from 0 on")
    _check_summary(point.get("summary"), f"{where}: summary")
    cost = _object(point.get("cost"), f"{where}: cost")
    for name in ("seconds", "flops"):
        value = finite(cost.get(name))
        _require(value is not None and 0 <= value <= 1e40, f"{where}: cost, {name}", cost.get(name), "a number from 0")
    for name in ("meta", "notes"):
        _object(point.get(name, {} if name == "notes" else None), f"{where}: {name}")
    for name, value in _object(point.get("paper", {}), f"{where}: paper").items():
        _require(_is_bounded(value), f"{where}: paper, {name!r:.60}", value, "a number")
    for name, value in _object(point.get("signatures", {}), f"{where}: signatures").items():
        _require(isinstance(value, str), f"{where}: signatures, {name!r:.60}", value, "a text")
    for name, value in _object(point.get("by_place", {}), f"{where}: by_place").items():
        _require(is_curve(value), f"{where}: by_place, {name!r:.60}", value, "shares")
    _check_settings(point.get("settings", {}), f"{where}: settings")
    _check_attacks(point.get("attacks", []), f"{where}: attacks")
    _check_given(point, where)
    check_intervals(point.get("intervals", {}), f"{where}: intervals")
    check_values(point.get("values", {}), f"{where}: values")


def _check_summary(summary: Any, where: str) -> None:
    summary = _object(summary, where)
    for name in _NEEDED:
        _require(name in summary, f"{where}, {name}", None, "a number")
    for name, value in summary.items():
        of = f"{where}, {name!r:.60}"
        _require(isinstance(value, int | float), of, value, "a number")
        if name == _PERPLEXITY:
            number = finite(value)
            _require(number is not None and 1 <= number <= 1e305, of, value, "a perplexity, which is at least 1")
        elif name in _DRAWN:
            _require(_is_bounded(value), of, value, "a number")
        else:  # nothing is drawn of it: it may be NaN or infinite
            _require(isinstance(value, float) or abs(value) <= MOST_NUMBER, of, value, "a number")


def _check_given(point: Mapping[str, Any], where: str) -> None:
    """What a method was given: where its formula is from, its reward, budget, text to keep, and tuned values."""
    texts = {"source": point.get("source", ""), "notes, reward": point.get("notes", {}).get("reward", "")}
    for name, text in texts.items():
        _require(_is_short(text), f"{where}: {name}", text, "a text of at most 200 signs")
    if "budget" in point:
        budget = _object(point["budget"], f"{where}: budget")
        for name in _BUDGET:
            _require_count(budget.get(name), f"{where}: budget, {name}")
        for name in ("own_rows", "siblings"):  # older points have none
            _require_count(budget.get(name, 0), f"{where}: budget, {name}")
        early, on = budget.get("early_end"), budget.get("forget_on")
        _require(isinstance(early, bool), f"{where}: budget, early_end", early, "true or false")
        _require(on in ("passage", "suffix"), f"{where}: budget, forget_on", on, '"passage" or "suffix"')
    counts = {name: _object(point.get(name, {}), f"{where}: {name}") for name in ("text_to_keep", "kept")}
    if "kept" in point:
        counts["kept"] = {name: counts["kept"].get(name) for name in _KEPT}
    if "tuning" in point:
        tuning = _object(point["tuning"], f"{where}: tuning")
        counts["tuning, passages"] = _object(tuning.get("passages"), f"{where}: tuning, passages")
        tried = _object(tuning.get("tried"), f"{where}: tuning, tried")
        _require(
            len(tried) <= MOST_TRIED and all(map(_is_short, tried)), f"{where}: tuning, tried", tried, "few values"
        )
    for part, numbers in counts.items():
        for name, value in numbers.items():
            _require_count(value, f"{where}: {part}, {name!r:.60}")


def _check_settings(settings: Any, where: str) -> None:
    """Settings of the evaluation that :class:`Settings` takes."""
    settings = _object(settings, where)
    known = {field.name for field in fields(Settings)}
    for name in settings:
        _require(name in known, f"{where}, {name!r:.60}", settings[name], "known to this version")
    try:
        check_types(Settings(**settings))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {str(error)[:200]}") from error


def _check_attacks(attacks: Any, where: str) -> None:
    _require(isinstance(attacks, list), where, attacks, "a list")
    for number, attack in enumerate(attacks, start=1):
        attack = _object(attack, f"{where}, {number}")
        name = attack.get("name")
        _require(isinstance(name, str) and len(name) <= 100, f"{where}, {number}, name", name, "a short text")
        for group, numbers in _object(attack.get("groups"), f"{where}, {number}, groups").items():
            of = f"{where}, {number}, groups, {group!r:.60}"
            numbers = _object(numbers, of)
            _require(len(group) <= 100, of, numbers, "a group with a short name")
            _require(_is_bounded(numbers.get("exact")), f"{of}, exact", numbers.get("exact"), "a number")
            if "secret" in numbers:  # where passages have any
                _require(_is_bounded(numbers["secret"]), f"{of}, secret", numbers["secret"], "a number")
        check_attack(attack, f"{where}, {number}")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    _require(isinstance(value, dict), where, value, "an object")
    return dict(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_bounded(value: Any) -> bool:
    number = finite(value)
    return number is not None and abs(number) <= MOST_NUMBER


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200


def _require_count(value: Any, where: str) -> None:
    _require(_is_bounded(value) and value >= 0, where, value, "a number from 0 on")


def _require(is_right: bool, where: str, value: Any, wanted: str) -> None:
    if not is_right:
        raise ValueError(f"{where} is {value!r:.60}, not {wanted}")
