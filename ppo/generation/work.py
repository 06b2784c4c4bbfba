"""What an engine reports about the work that it did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Work:
    """Counts of one ``generate`` call.

    ``positions`` is the number of token positions computed. ``real_positions`` of them were of use: neither padding,
    nor of a finished row, nor of a rejected draft. ``cache_bytes`` is the size of the cache. ``draft_tokens`` were
    checked, and ``accepted_tokens`` of them were accepted.
    """

    is_fast: bool = False
    positions: int = 0
    real_positions: int = 0
    decode_steps: int = 0
    prefill_seconds: float = 0.0
    cache_bytes: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def count(self, positions: int, real_positions: int) -> None:
        self.positions += positions
        self.real_positions += real_positions

    @property
    def padding_waste(self) -> float:
        """The share of computed positions that were padding or already finished."""
        return 1.0 - self.real_positions / self.positions if self.positions else 0.0

    @property
    def draft_acceptance(self) -> float:
        """The share of the checked draft tokens that were accepted; 0 if none was checked."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else 0.0
