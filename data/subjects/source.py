"""A record of a benchmark before any tokens: its text, or its ids, and which group it belongs to.

This module knows records, no files and no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppo.io.rows import Place


@dataclass(frozen=True)
class Source:
    """``text``: what a model may have memorised, behind ``prompt`` where the benchmark gives one.

    ``prefix_ids`` and ``suffix_ids`` take their place in a benchmark of token ids. ``is_long``: the text is cut into
    passages all along, not only at its start. ``place``: the file and the row, for errors. ``group``, ``kind``,
    ``repeats`` and ``secrets`` as in :class:`data.types.Passage`.
    """

    place: Place
    kind: str
    group: str
    text: str = ""
    prompt: str = ""
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    is_long: bool = False
    repeats: int = 0
    secrets: tuple[str, ...] = ()
