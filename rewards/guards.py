"""Guards: a response that would win a similarity reward by being broken gets the worst score instead.

This module alone defines empty, short, looping, repetitive and garbled responses. A true suffix may itself be short,
loop or repeat itself (a table does), so a response breaks these guards only by what exceeds its true suffix. This
module does not know what the worst score is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ppo.io.visible import BLANKS, JOINERS
from ppo.types import Sample

from .repetition import loop_share, repeated_share
from .samples import content_ids, has_truth, is_visible, truth_ids

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Guards:
    """Limits of an acceptable response; None switches a guard off. Shares are in [0, 1].

    min_tokens          least number of response tokens without EOS; a shorter true suffix lowers it to its own length
    max_repeated_share  share of repeated bigrams, in excess of the true suffix's
    max_loop_share      share of tokens in the longest loop (a period of at most 12 tokens, at least 3 rounds), in
                        excess of the true suffix's
    max_garbled_share   share of characters that are U+FFFD, control, private, surrogate, unassigned or invisible, in
                        excess of the true suffix's
    """

    min_tokens: int | None = 5
    max_repeated_share: float | None = 0.5
    max_loop_share: float | None = 0.5
    max_garbled_share: float | None = 0.1

    def __post_init__(self) -> None:
        for name in ("max_repeated_share", "max_loop_share", "max_garbled_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"Guards.{name}={value!r} must lie in [0, 1], or be None to switch it off")
        if self.min_tokens is not None and self.min_tokens < 0:
            raise ValueError(f"Guards.min_tokens={self.min_tokens!r} must be at least 0, or None to switch it off")

    def reason(self, sample: Sample) -> str | None:
        """The first guard that the sample breaks ("empty", "short", "garbled", "loop", "repeated"), or None.

        Empty text (no character that a reader sees, :func:`rewards.samples.is_visible`) always breaks a guard.
        """
        tokens = content_ids(sample)
        truth = truth_ids(sample) if has_truth(sample) else ()
        if not tokens or not is_visible(sample.text):
            return "empty"
        if self.min_tokens is not None and len(tokens) < min(self.min_tokens, len(truth) or self.min_tokens):
            return "short"
        if self.max_garbled_share is not None:
            true_text = sample.row.get("suffix")
            allowed = garbled_share(true_text) if isinstance(true_text, str) else 0.0
            if garbled_share(sample.text) - allowed > self.max_garbled_share:
                return "garbled"
        if self.max_loop_share is not None and loop_share(tokens) - loop_share(truth) > self.max_loop_share:
            return "loop"
        if self.max_repeated_share is not None:
            excess = repeated_share(tokens, 2) - repeated_share(truth, 2)
            return "repeated" if excess > self.max_repeated_share else None
        return None

    def reasons(self, samples: Sequence[Sample]) -> list[str | None]:
        """:meth:`reason` of every sample."""
        return [self.reason(sample) for sample in samples]

    @property
    def signature(self) -> str:
        """The active guards and their limits."""
        limits = [("short", self.min_tokens), ("garbled", self.max_garbled_share)]
        limits += [("loop", self.max_loop_share), ("repeated", self.max_repeated_share)]
        return "guards|empty" + "".join(f"|{name}:{value}" for name, value in limits if value is not None)


ONLY_EMPTY = Guards(min_tokens=None, max_repeated_share=None, max_loop_share=None, max_garbled_share=None)
"""Only the guard against empty text, which every run should have."""


def garbled_share(text: str) -> float:
    """Share of characters that no reader can use, in [0, 1].

    They are U+FFFD and the control (except white space), private, surrogate and unassigned characters, and the
    invisible ones, which part a copied word so that no measure knows it. Joiners count as letters: Persian and emoji
    need them.
    """
    return sum(map(_is_garbled, text)) / len(text) if text else 0.0


def _is_garbled(character: str) -> bool:
    if character == REPLACEMENT:
        return True
    if character.isspace() or character in JOINERS:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs") or character in BLANKS
