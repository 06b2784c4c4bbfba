"""Pythia's memorised sequences (Biderman et al. 2023): 64 tokens each, of which the model recites the last 32.

The data set ``EleutherAI/pythia-memorized-evals`` has a split for every model, such as ``duped.1.4b`` or
``deduped.12b``, with the columns ``index`` and ``tokens``. The ids are those of GPT-NeoX's vocabulary, so they go to a
Pythia model alone. All sequences are to be forgotten; the data names none that were never seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.subjects.source import Source
from data.subjects.tables import missing, rows, tables
from ppo.io.visible import visible

NAME = "Pythia's memorised sequences"
PREFIX_TOKENS = 32
PROBES = {" the": 253, " and": 285, " of": 273}
"""Words whose ids tell the vocabulary that the ids belong to."""


def read(folder: Path, split: str | None) -> Iterator[Source]:
    """The sequences of one split; ValueError lists the splits if there are several and none is named."""
    found = [table for table in tables(folder) if "duped." in table.name or folder.is_file()]
    names = sorted({table.name for table in found})
    if not found:
        raise missing(folder, NAME, ["duped.*", "deduped.*"])
    wanted = split or (names[0] if len(names) == 1 else None)
    if wanted not in names:
        raise ValueError(
            f"{visible(str(folder))} has the splits {', '.join(names)}: name one of them with --data-split"
        )
    for table in (table for table in found if table.name == wanted):
        for place, row in rows(table):
            ids = row.get("tokens", row.get("Tokens"))
            if not isinstance(ids, list) or len(ids) <= PREFIX_TOKENS or not all(type(i) is int for i in ids):
                raise ValueError(
                    f"{place} has the keys {sorted(map(str, row))[:20]}; a row of {NAME} needs more than "
                    f"{PREFIX_TOKENS} token ids in 'tokens'"
                )
            prefix, suffix = tuple(ids[:PREFIX_TOKENS]), tuple(ids[PREFIX_TOKENS:])
            yield Source(place, wanted, "forget", prefix_ids=prefix, suffix_ids=suffix)
