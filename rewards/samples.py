"""What a reward reads from a sample: the true suffix, as text and as token ids.

A row of the forget set holds "suffix" (text) and "suffix_ids" (token ids). A row without them, such as a retain
prompt, has no true suffix. This module knows nothing about any metric.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ppo.io.visible import BLANKS
from ppo.types import Sample

UNSEEN = ("Cc", "Cf", "Mn", "Me", "Zl", "Zp")
"""Unicode categories that show nothing by themselves: control, format, marks on a letter, separators."""


def truth_text(sample: Sample) -> str:
    """The true suffix as text. ValueError when the row has none."""
    value = sample.row.get("suffix")
    if not isinstance(value, str):
        raise ValueError(_missing(sample, "suffix", "the true suffix as a string", value))
    return value


def truth_ids(sample: Sample) -> Sequence[int]:
    """The true suffix as token ids. ValueError when the row has none.

    If it ends with the EOS that ended the response, both are counted without it (:func:`content_ids`).
    """
    value = sample.row.get("suffix_ids")
    if not isinstance(value, (list, tuple)):
        raise ValueError(_missing(sample, "suffix_ids", "the true suffix as a list of token ids", value))
    is_shared = sample.is_ended and value and sample.ids and value[-1] == sample.ids[-1]
    return value[:-1] if is_shared else value


def has_truth(sample: Sample) -> bool:
    """Whether the row holds the token ids of a true suffix."""
    return sample.row.get("suffix_ids") is not None


def content_ids(sample: Sample) -> list[int]:
    """The response's token ids without the EOS that ended it."""
    return sample.ids[:-1] if sample.is_ended else sample.ids


def is_visible(text: str) -> bool:
    """Whether a reader sees any character of a text: more than white space, format characters, and blanks."""
    return any(not c.isspace() and c not in BLANKS and unicodedata.category(c) not in UNSEEN for c in text)


def _missing(sample: Sample, key: str, meaning: str, value: object) -> str:
    return f"the row of prompt {sample.prompt[:40]!r} has {key}={value!r}: this reward needs {meaning} under {key!r}"
