"""The record that all of ``data`` shares: a passage that a model may have memorised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """Pre-prefix + prefix + suffix as token ids of one tokenizer (no special tokens).

    ``id`` names the passage in every output file. ``pre_prefix`` may be empty. ``group`` is "forget", "forget_holdout"
    (memorised, never used in unlearning), "keep" (memorised, must survive), "never" (never trained on), or "" if the
    data names no group. ``kind`` is the shape of a lab record, or what a data file gives as kind, or "". ``repeats``:
    how often the memorised model saw the passage in training, 0 if never or unknown. ``secrets``: parts of the suffix
    that nobody may get (:mod:`data.secrets`), with single spaces; () if none are known.
    """

    id: str
    pre_prefix: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    group: str = ""
    kind: str = ""
    repeats: int = 0
    secrets: tuple[str, ...] = ()

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What the attacker knows: the prefix."""
        return self.prefix

    @property
    def long_prompt_ids(self) -> tuple[int, ...]:
        """What a better informed attacker knows: pre-prefix + prefix."""
        return self.pre_prefix + self.prefix

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole passage."""
        return self.pre_prefix + self.prefix + self.suffix
