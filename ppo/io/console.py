"""A console that cannot write every sign. This module knows streams, nothing else."""

from __future__ import annotations

from typing import Any


def print_any_text(*streams: Any) -> None:
    """Let a console that is not UTF-8 show what it cannot write as escapes, such as \\u2026, in place of an error.

    A run must not end because of a sign in a model's text. ``streams`` without an encoding of their own stay.
    """
    for stream in streams:
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")
