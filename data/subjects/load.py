"""``--data NAME:FOLDER``: the passages of a benchmark of the field, from files on this machine.

Of what must survive and of what was never seen there are as many passages as of what is to be forgotten, evenly spaced:
an evaluation shows the same of each. The formats are in this folder, a file a benchmark. Nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from data.secrets import fold
from data.subjects import hubble, muse, pythia, rwku, tofu
from data.subjects.cut import passages_of
from data.subjects.source import Source
from data.types import Passage
from ppo.io.rows import Place
from ppo.io.surrogates import without_surrogates
from ppo.io.visible import visible

READERS: dict[str, Callable[[Path, str | None], Iterator[Source]]] = {
    "pythia": pythia.read, "hubble": hubble.read, "muse": muse.read, "tofu": tofu.read, "rwku": rwku.read,
}  # fmt: skip
_LABEL = 40  # characters of a kind that an id shows


def named_subject(spec: str | Path) -> tuple[str, Path] | None:
    """("hubble", the folder) of "hubble:FOLDER"; None for any other ``--data``, an existing path above all."""
    name, sign, folder = str(spec).partition(":")
    if not sign or name not in READERS or Path(spec).exists():
        return None
    if not folder:
        raise ValueError(f"--data {str(spec)!r} names no folder; write {name}:FOLDER")
    return name, Path(folder)


def load_subject(
    name: str, folder: Path, tokenizer: Any, *, split: str | None = None, limit: int | None = None
) -> tuple[list[Place], list[Passage]]:
    """(places, passages) of a benchmark; at most ``limit`` of each group.

    ValueError for files that are missing or of another shape, and for ids of another vocabulary. A RuntimeWarning
    counts texts that are too short.
    """
    if name == "pythia":
        check_vocabulary(folder, tokenizer)
    found: dict[str, list[tuple[Place, Passage]]] = {"forget": [], "keep": [], "never": []}
    num_short = 0
    for source in READERS[name](folder, split):
        cut = list(islice(passages_of(source, tokenizer), limit))
        num_short += not cut
        of_group = found[source.group]
        of_group += [(source.place, _named(passage, len(of_group) + i, tokenizer)) for i, passage in enumerate(cut)]
    if num_short:
        warnings.warn(
            f"{num_short} texts of {visible(str(folder))} are too short for a prompt and a suffix: they are left out",
            RuntimeWarning,
            stacklevel=4,
        )
    forget = found["forget"][:limit]
    rest = [evenly(found[group], len(forget)) for group in ("keep", "never")] if forget else []
    chosen = [*forget, *(pair for group in rest for pair in group)]
    return [place for place, _ in chosen], [passage for _, passage in chosen]


def check_vocabulary(folder: Path, tokenizer: Any) -> None:
    """ValueError unless the tokenizer has GPT-NeoX's ids, which Pythia's sequences are written in."""
    for text, expected in pythia.PROBES.items():
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids != [expected]:
            raise ValueError(
                f"{visible(str(folder))} holds token ids of GPT-NeoX's vocabulary, but the model's tokenizer encodes "
                f"{text!r} as {ids}, not [{expected}]: they go to a Pythia model alone"
            )


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of the items, evenly spaced, or all if there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _named(passage: Passage, number: int, tokenizer: Any) -> Passage:
    """The passage with its id, and with those of its secrets that its suffix holds."""
    label = "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in passage.kind[:_LABEL])
    secrets = passage.secrets
    if secrets:
        suffix = fold(without_surrogates(tokenizer.decode(list(passage.suffix), skip_special_tokens=True)))
        secrets = tuple(secret for secret in secrets if secret in suffix)
    return replace(passage, id=f"{passage.group}-{label}-{number:05d}", secrets=secrets)
