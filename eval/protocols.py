"""What the evaluation needs from its caller: passages, a tokenizer that decodes, and a function that generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from ppo.config import Sampling
from ppo.io.surrogates import refuse_surrogates
from ppo.types import Generation


class Passage(Protocol):
    """pre-prefix + prefix + suffix, as token ids. Any object with these attributes is a passage.

    ``group``: "forget", "forget_holdout" (memorised, never used in unlearning), "keep" (memorised, must survive),
    "never" (never trained on: the chance floor), or any other name. ``kind``: the kind of text. ``repeats``: how often
    the model was trained on it. A passage may also have ``secrets``, parts of its suffix that nobody may get.
    """

    @property
    def id(self) -> str: ...
    @property
    def pre_prefix(self) -> Sequence[int]: ...
    @property
    def prefix(self) -> Sequence[int]: ...
    @property
    def suffix(self) -> Sequence[int]: ...
    @property
    def group(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def repeats(self) -> int: ...


class Decoder(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...


class Generate(Protocol):
    """``ppo.generate``, or any function with this signature. Responses are in prompt-major order."""

    def __call__(
        self, model: nn.Module, prompts: list[list[int]], sampling: Sampling, *, seed: int = 0, slots: int = 64
    ) -> Generation: ...


def secrets_of(passage: Passage) -> Sequence[str]:
    """What of the suffix nobody may get: ``passage.secrets``, which a passage may lack."""
    return tuple(getattr(passage, "secrets", ()))


def whole(passage: Passage) -> list[int]:
    """All tokens of a passage in order."""
    return [*passage.pre_prefix, *passage.prefix, *passage.suffix]


def check_passages(passages: Sequence[Passage]) -> None:
    """ValueError for an empty list, a passage without prefix or suffix, and an id that occurs twice.

    Half a character in an id, a group or a kind is an error too (:mod:`ppo.io.surrogates`).
    """
    if not passages:
        raise ValueError("there are no passages to evaluate: give at least one")
    seen: set[str] = set()
    for p in passages:
        if not p.prefix or not p.suffix:
            sizes = f"{len(p.prefix)} prefix and {len(p.suffix)} suffix tokens"
            raise ValueError(f"passage {p.id!r} has {sizes}: need both")
        if p.id in seen:
            raise ValueError(f"passage id {p.id!r} occurs twice: ids must be unique")
        refuse_surrogates({"id": p.id, "group": p.group, "kind": p.kind}, f"passage {p.id!r}")
        seen.add(p.id)
