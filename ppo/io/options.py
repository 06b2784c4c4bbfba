"""The fields of a dataclass as command-line options: ``prompts_per_step`` becomes ``--prompts-per-step``.

Only options that were given come back, so that a caller can lay them over a preset or over saved settings. The comment
behind a field is its help text. This module knows annotations, nothing about PPO.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints


def add_options(parser: argparse.ArgumentParser, cls: type, *, title: str) -> None:
    """Add an option for every field of the dataclass ``cls``, in a group of their own, absent unless given."""
    group = parser.add_argument_group(title)
    hints, comments = get_type_hints(cls), field_comments(cls)
    for field in dataclasses.fields(cls):
        flag = "--" + field.name.replace("_", "-")
        hint = hints[field.name]
        text = comments.get(field.name, "").replace("%", "%%")
        text = f"{text} (default {field.default})".strip()
        if hint is bool:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, dest=field.name, help=text
            )
        elif get_origin(hint) is tuple:
            group.add_argument(flag, nargs="+", default=argparse.SUPPRESS, dest=field.name, metavar="…", help=text)
        else:
            choices = [str(c) for c in get_args(hint)] if get_origin(hint) is Literal else None
            group.add_argument(
                flag, default=argparse.SUPPRESS, dest=field.name, choices=choices,
                metavar=None if choices else _metavar(hint), help=text,
            )  # fmt: skip


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
    raise ValueError(f"--{name.replace('_', '-')} takes {_metavar(hint)}, not {text!r}")


def given_values(arguments: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields of ``cls`` that were given on the command line, as values of their annotations."""
    hints = get_type_hints(cls)
    given = vars(arguments)
    return {
        name: tuple(given[name]) if get_origin(hints[name]) is tuple else parse_value(name, given[name], hints[name])
        for name in hints
        if name in given
    }


def field_comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's line in the source of a dataclass."""
    found = re.findall(r"^    (\w+):[^#\n]*#\s*(.+)$", inspect.getsource(cls), flags=re.MULTILINE)
    return dict(found)


def _metavar(hint: Any) -> str:
    names = {int: "INT", float: "FLOAT", str: "TEXT", type(None): "none"}
    return "|".join(names.get(option, str(option)) for option in get_args(hint) or (hint,))
