"""The built-in lab corpus: memorised records of invented people, harmless memorised texts, and general English.

The records (data/records.py) do not depend on the Python version. The general English (data/english.py) comes from the
running Python's documentation and may vary a little with its version. Lengths are in tokens of the given tokenizer,
normally the lab's own. This module knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from data.english import retain_and_holdout
from data.records import REPEATS, lab_records
from data.types import Passage

if TYPE_CHECKING:
    from ppo.types import Tokenizer

PRE_PREFIX_TOKENS = 50
PREFIX_TOKENS = 50
SUFFIX_TOKENS = 50


def lab_passages(tokenizer: Tokenizer) -> list[Passage]:
    """Every record as a passage of its first 50 + 50 + 50 tokens. The groups are those of ``GROUP_SIZES``.

    ValueError when a record has fewer tokens under the given tokenizer.
    """
    first, second = PRE_PREFIX_TOKENS, PRE_PREFIX_TOKENS + PREFIX_TOKENS
    length = second + SUFFIX_TOKENS
    passages = []
    for record in lab_records():
        ids = encode(tokenizer, record.text)
        if len(ids) < length:
            raise ValueError(f"lab record {record.id} has {len(ids)} tokens under this tokenizer; {length} are needed")
        cut = (tuple(ids[:first]), tuple(ids[first:second]), tuple(ids[second:length]))
        passages.append(Passage(record.id, *cut, record.group, record.kind, REPEATS[record.group]))
    return passages


def lab_retain(tokenizer: Tokenizer, length_tokens: int) -> list[list[int]]:
    """General English that the lab's models were trained on, as chunks of exactly ``length_tokens`` ids."""
    return chunks(tokenizer, retain_and_holdout()[0], length_tokens)


def lab_holdout(tokenizer: Tokenizer, length_tokens: int) -> list[list[int]]:
    """General English that no lab model ever saw, as chunks of exactly ``length_tokens`` ids."""
    return chunks(tokenizer, retain_and_holdout()[1], length_tokens)


def memorised_texts() -> dict[str, str]:
    """The whole texts of the records that the memorised twin was trained on, by id. A passage is the start of one."""
    return {record.id: record.text for record in lab_records() if REPEATS[record.group]}


def chunks(tokenizer: Tokenizer, documents: Iterable[str], length_tokens: int) -> list[list[int]]:
    """Documents cut into pieces of exactly ``length_tokens`` ids. The shorter rest of each document is dropped."""
    if length_tokens < 1:
        raise ValueError(f"length_tokens={length_tokens} must be at least 1")
    pieces = []
    for text in documents:
        ids = encode(tokenizer, text)
        starts = range(0, len(ids) - length_tokens + 1, length_tokens)
        pieces += [ids[start : start + length_tokens] for start in starts]
    return pieces


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
