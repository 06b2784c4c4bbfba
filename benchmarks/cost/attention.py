"""Operations of attention: two products forward, over the pairs of tokens that are computed."""

from __future__ import annotations

from .architecture import Architecture
from .device import Rate


def attention_operations(arch: Architecture, tokens: int, length: int, layers: int) -> float:
    """Operations of scores and values in ``layers`` blocks over ``tokens`` in sequences of ``length``, forward.

    Fused attention leaves out the pairs that the causal mask hides.
    """
    pairs = length * (length + 1) / 2 if arch.has_fused_attention else length**2
    return layers * tokens / length * 4 * arch.query_width * pairs


def attention_rate(rate: Rate) -> Rate:
    """The rate of attention in the precision of ``rate``."""
    return "bfloat16 attention" if rate == "bfloat16" else "float32 attention"
