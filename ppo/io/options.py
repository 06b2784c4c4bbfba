"""The fields of a dataclass as command-line options: ``prompts_per_step`` becomes ``--prompts-per-step``.

Only options that were given come back, so that a caller can lay them over a preset or over saved settings. The comment
behind a field is its help text, the comment above a block of fields is the block's heading. This module knows
annotations, nothing about PPO.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


def add_options(
    group: argparse.ArgumentParser | argparse._ArgumentGroup,
    cls: type,
    names: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    is_shown: bool = True,
) -> None:
    """Add an option for each field of the dataclass ``cls``. An option that was not given leaves no attribute.

    ``names``: the fields, in the order of the help; None: all. ``defaults``: what the help shows where it is not the
    field's own default. An option that is not shown works all the same. ValueError for a name that is no field.
    """
    hints, comments = _hints(cls), field_comments(cls)
    own = {field.name: field.default for field in dataclasses.fields(cls)}
    for name in own if names is None else names:
        if name not in own:
            raise ValueError(f"{cls.__name__} has no field {name!r}")
        default = {**own, **(defaults or {})}[name]
        text = _help(comments.get(name, ""), default) if is_shown else argparse.SUPPRESS
        _add_option(group, name, hints[name], text)


def flag_of(name: str) -> str:
    """The option of a field: ``top_k`` is ``--top-k``."""
    return "--" + name.replace("_", "-")


def parse_value(name: str, text: Any, hint: Any) -> Any:
    """What was typed, as a value of the annotation; "none" is None where the annotation allows it.

    Raises ValueError that names the option and what it takes.
    """
    if not isinstance(text, str) or hint is str or get_origin(hint) is Literal:
        return text
    options = get_args(hint) or (hint,)
    if type(None) in options and text.lower() == "none":
        return None
    for kind in (int, float):
        if kind in options:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in options:
        return text
    raise ValueError(f"{flag_of(name)} takes {_metavar(hint)}, not {text!r}")


def given_values(arguments: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields of ``cls`` that were given on the command line, as values of their annotations."""
    hints = _hints(cls)
    given = vars(arguments)
    return {
        name: tuple(given[name]) if get_origin(hints[name]) is tuple else parse_value(name, given[name], hints[name])
        for name in hints
        if name in given
    }


def field_comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's line in the source of a dataclass."""
    found = re.findall(r"^    (\w+):[^#\n]*#\s*(.+)$", _source(cls), flags=re.MULTILINE)
    return dict(found)


def field_sections(cls: type) -> dict[str, tuple[str, ...]]:
    """The fields of a dataclass under the comments that stand on lines of their own; "" holds those before the first.

    Example: ``# Update`` above ``epochs: int = 4`` and ``minibatch: int = 32`` gives ``{"Update": ("epochs",
    "minibatch")}``.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    sections: dict[str, tuple[str, ...]] = {}
    heading = ""
    for line in _source(cls).splitlines():
        if found := re.match(r"    # (.+)", line):
            heading = found[1]
        elif (found := re.match(r"    (\w+):", line)) and found[1] in fields:
            sections[heading] = (*sections.get(heading, ()), found[1])
    return sections


@cache
def _source(cls: type) -> str:
    """The lines of a class, kept: Python searches the whole module for them."""
    return inspect.getsource(cls)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a class, kept: Python compiles each of them."""
    return get_type_hints(cls)


def _add_option(group: argparse.ArgumentParser | argparse._ArgumentGroup, name: str, hint: Any, text: str) -> None:
    more: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name, "help": text}
    if hint is bool:
        group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, **more)
    elif get_origin(hint) is tuple:
        group.add_argument(flag_of(name), nargs="+", metavar="VALUE", **more)
    elif get_origin(hint) is Literal:
        group.add_argument(flag_of(name), choices=[str(choice) for choice in get_args(hint)], **more)
    else:
        group.add_argument(flag_of(name), metavar=_metavar(hint), **more)


def _help(comment: str, default: Any) -> str:
    """The comment and the default; not the default ``none`` where the comment says what it means."""
    typed = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    if typed in ("", "None"):
        typed = "" if "none: " in comment.lower() else "none"
    return (comment + (f" (default {typed})" if typed else "")).strip().replace("%", "%%")


def _metavar(hint: Any) -> str:
    names = {int: "INT", float: "FLOAT", str: "TEXT", type(None): "none"}
    return "|".join(names.get(option, str(option)) for option in get_args(hint) or (hint,))
