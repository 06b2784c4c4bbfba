"""What leaks when an attacker draws k samples: the expected share of passages that come out at least once.

Where text is decoded token by token, the probability p_z that one sample is the suffix is exact, a product of the
probabilities of its tokens, so that k may be far beyond what anybody would draw. This module knows numbers.
"""

from __future__ import annotations

from .extraction import extraction_probability

SAMPLES = (10, 100, 1_000, 10_000, 100_000)
"""k of leak@k. With k = 1 it is ``sequence_p``."""


def leak_name(k: int) -> str:
    """The quantity of leak@k; ``sequence_p`` for k = 1."""
    return "sequence_p" if k == 1 else f"leak_{k}"


def leak_metrics(log_pz: float) -> dict[str, float]:
    """1 - (1 - p_z)^k of one passage for each k of :data:`SAMPLES`; its mean over passages is the expected share.

    Example: p_z = 0.01 -> leak_10 is 0.096, leak_100 is 0.634.
    """
    return {leak_name(k): extraction_probability(log_pz, k) for k in SAMPLES}
