"""Text to keep: general text that unlearning must not damage, from text files or JSONL, as chunks of token ids.

``data.splits.split_holdout`` splits it into retain and holdout. This module knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.lab import chunks
from ppo.io.console import shown_errors
from ppo.io.rows import jsonl_rows, kind_of_file, text_lines
from ppo.io.visible import visible

if TYPE_CHECKING:
    from ppo.types import Tokenizer


MAX_TEXT_BYTES = 2**28  # of one document, which is held in memory
PIECE_CHARACTERS = 2**20  # encoded at once: a tokenizer takes hundreds of bytes for each


@shown_errors()
def load_retain(paths: Sequence[str | Path], tokenizer: Tokenizer, length_tokens: int) -> list[list[int]]:
    """Chunks of exactly ``length_tokens`` ids, in the order of the files. The rest of each document is dropped.

    A ``.jsonl`` file holds one document per row, under "text". Any other file is one document of UTF-8 text. A document
    of more than a million characters counts as several: it is cut where lines end, and encoded by parts. ValueError
    for unreadable content, with its file and line, and when no document is long enough for a single chunk.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError("no retain files were given; name at least one text or .jsonl file")
    texts = (piece for path in paths for text in documents(path) for piece in _pieces(text))
    pieces = chunks(tokenizer, texts, length_tokens)
    if not pieces:
        names = ", ".join(visible(str(path)) for path in paths)
        raise ValueError(f"{names}: no document is {length_tokens} tokens long; give more text or a shorter length")
    return pieces


def _pieces(text: str) -> Iterator[str]:
    """A document in pieces of ``PIECE_CHARACTERS`` at most; each but the last ends with a line, if one ends in it."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def documents(path: Path) -> Iterator[str]:
    """The documents of one file."""
    if kind_of_file(path) not in (".jsonl", ".ndjson"):
        if path.is_file() and path.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(
                f"{visible(str(path))} is longer than {MAX_TEXT_BYTES} bytes; give it as .jsonl, one document per row"
            )
        text = "".join(line for _, line in text_lines(path))
        yield text.replace("\r\n", "\n").replace("\r", "\n")  # as Python's own text mode reads line ends
        return
    for place, row in jsonl_rows(path):
        text = row.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{place} has the keys {sorted(row)}; it needs a string under 'text'")
        yield text
