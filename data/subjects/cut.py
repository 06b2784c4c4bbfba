"""Texts of a benchmark as passages: at most 50 + 50 tokens of prompt, and at most 50 that are asked for.

A text that is behind a prompt begins a suffix. A text alone gives its first 50 + 50 + 50 tokens, or all passages of
150 tokens in a row if it is long. The whole is encoded at once, as in training; a token that straddles a cut belongs to
the later part. This module knows a tokenizer, no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.corpus.document import Document
from data.corpus.reading import readings
from data.subjects.source import Source
from data.types import Passage

PRE_PREFIX_TOKENS = 50
PREFIX_TOKENS = 50
SUFFIX_TOKENS = 50
SHORTEST = 20
"""Tokens of a text alone: of a shorter one there is no prompt that tells which text is meant."""


def passages_of(source: Source, tokenizer: Any) -> Iterator[Passage]:
    """The passages of a record, without an id; none if it is too short."""
    if source.suffix_ids:
        yield _passage(source, (), source.prefix_ids, source.suffix_ids)
        return
    text = source.prompt + source.text
    reading = next(readings(Document(source.kind, source.kind, text, ((0, 1),)), tokenizer, with_folded=False))
    ids = tuple(reading.ids.tolist())
    if source.prompt:
        cut = int((reading.ends <= len(source.prompt)).sum())
        if 0 < cut < len(ids):
            yield _around(source, ids, cut)
        return
    if len(ids) < SHORTEST:
        return
    length = PRE_PREFIX_TOKENS + PREFIX_TOKENS + SUFFIX_TOKENS
    if len(ids) < length:
        yield _around(source, ids, max(len(ids) - SUFFIX_TOKENS, len(ids) // 2))
    for start in range(0, len(ids) - length + 1, length):
        yield _around(source, ids[start : start + length], PRE_PREFIX_TOKENS + PREFIX_TOKENS)
        if not source.is_long:
            return


def _around(source: Source, ids: tuple[int, ...], cut: int) -> Passage:
    prefix = max(0, cut - PREFIX_TOKENS)
    return _passage(
        source, ids[max(0, prefix - PRE_PREFIX_TOKENS) : prefix], ids[prefix:cut], ids[cut:][:SUFFIX_TOKENS]
    )


def _passage(source: Source, pre_prefix: tuple[int, ...], prefix: tuple[int, ...], suffix: tuple[int, ...]) -> Passage:
    return Passage("", pre_prefix, prefix, suffix, source.group, source.kind, source.repeats, source.secrets)
