"""TOFU (Maini et al. 2024): questions and answers about authors who do not exist.

The files are those of ``locuslab/TOFU``: ``forget01.json`` (05, 10), ``retain99.json`` (95, 90) and, for texts that no
model saw, ``holdout01.json`` (05, 10). A row has ``question`` and ``answer``. The prompt is "Question: …\\nAnswer:", as
in the authors' training of Phi; a model with another template needs its own rows (a .jsonl file).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data.subjects.source import Source
from data.subjects.tables import Table, missing, rows, tables, text_of
from ppo.io.visible import visible

NAME = "TOFU"
_SPLIT = re.compile(r"(forget|retain|holdout)(\d\d)")


def read(folder: Path, split: str | None) -> Iterator[Source]:
    """Answers to forget, answers to keep, answers never seen. ``split``: such as "forget05"; the smallest otherwise."""
    found = _found(tables(folder))
    splits = sorted(name for name in found if name.startswith("forget"))
    if not splits:
        raise missing(folder, NAME, ["forget01", "forget05", "forget10"])
    wanted = split or splits[0]
    if wanted not in splits:
        raise ValueError(
            f"{visible(str(folder))} has the splits {', '.join(splits)}; --data-split {wanted!r:.60} is none"
        )
    share = int(wanted.removeprefix("forget"))
    for name, group in ((wanted, "forget"), (f"retain{100 - share:02d}", "keep"), (f"holdout{share:02d}", "never")):
        for table in found.get(name, ()):
            for place, row in rows(table):
                question, answer = (text_of(row, key, place, NAME) for key in ("question", "answer"))
                yield Source(
                    place, name, group, text=f" {answer.strip()}", prompt=f"Question: {question.strip()}\nAnswer:"
                )


def _found(all_tables: list[Table]) -> dict[str, list[Table]]:
    """The files by split: ``forget01.json``, or ``forget01/train-00000-of-00001.parquet`` as the hub has it."""
    found: dict[str, list[Table]] = {}
    for table in all_tables:
        name = next((part for part in (table.name, *table.folders[-1:]) if _SPLIT.fullmatch(part)), None)
        if name:
            found.setdefault(name, []).append(table)
    return found
