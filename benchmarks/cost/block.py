"""What one transformer block reads, writes and keeps beside its matrix products, counted from the modelling code.

A *sweep* reads or writes one tensor once, in numbers a token. transformers' blocks are composed of small operations,
each of which sweeps its tensors through memory. On any device this is the part of a block that the rate of matrix
products does not explain. The sweeps were counted by reading transformers 5's Llama, GPT-Neo and OPT (and torch's
formulas for the backward pass), not by measuring.
"""

from __future__ import annotations

from dataclasses import dataclass

from .architecture import Architecture
from .plan import Precision

LAUNCHES = {
    "forward": 40,
    "backward": 80,
    "decode": 15,
    "decode attention": 5,
}  # operations in a block; on a GPU each is a kernel


@dataclass(frozen=True)
class Traffic:
    """Bytes of one token in one block: moved forward, moved backward, kept from the forward to the backward pass."""

    forward: float = 0.0
    backward: float = 0.0
    kept: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.forward + other.forward, self.backward + other.backward, self.kept + other.kept)


def block_traffic(arch: Architecture, precision: Precision, *, keys: int) -> Traffic:
    """Traffic beside the matrix products. ``keys``: the sequence's length, for attention that stores its scores."""
    attention = _rotary(arch, precision) + _attention(arch, precision, keys)
    return _norms(arch, precision) + _residuals(arch, precision) + attention + _mlp(arch, precision)


def _stream(precision: Precision) -> int:
    """Bytes of a number in the residual stream."""
    return 2 if precision == "bfloat16" else 4


def _product(precision: Precision) -> int:
    """Bytes of a number that goes into or out of a linear layer."""
    return 4 if precision == "float32" else 2


def _norms(arch: Architecture, precision: Precision) -> Traffic:
    """Both norms, and their outputs, which are the inputs of 3 and 1 (or 2) linear layers.

    An RMS norm squares, takes the mean, scales and weighs: 7 sweeps forward and 22 backward, always in float32. It
    keeps its input and the scaled input. A LayerNorm is one operation: 2 sweeps forward and 5 backward; it keeps its
    input. Autocast casts the output once for every linear layer that reads it.
    """
    width, stream, product = arch.width, _stream(precision), _product(precision)
    readers = 3 + (2 if arch.is_gated else 1)
    if arch.norm == "rms":
        kept = 8 if precision != "bfloat16" else 6  # float32 input, scaled input in the stream's type
        both = Traffic(2 * 7 * 4 * width, 2 * 22 * 4 * width, 2 * kept * width)
    else:
        both = Traffic(2 * 2 * stream * width, 2 * 5 * stream * width, 2 * stream * width)
    if precision == "autocast":
        cast = (stream + product) * readers * width
        return both + Traffic(cast, cast, product * readers * width)
    return both + Traffic(kept=2 * product * width)


def _residuals(arch: Architecture, precision: Precision) -> Traffic:
    """Two additions, and sums of gradients where several layers read one tensor."""
    readers = 3 + (2 if arch.is_gated else 1)
    sums = 2 + (readers - 2)
    stream = _stream(precision)
    return Traffic(2 * 3 * stream * arch.width, sums * 3 * stream * arch.width)


def _rotary(arch: Architecture, precision: Precision) -> Traffic:
    """x cos + rotate_half(x) sin for queries and keys: 10 sweeps forward, 15 backward; it keeps nothing of its own."""
    if arch.positions:
        return Traffic()
    size = _stream(precision) * (arch.query_width + arch.kv_width)
    return Traffic(10 * size, 15 * size)


def _attention(arch: Architecture, precision: Precision, keys: int) -> Traffic:
    """Queries, keys, values and output are kept. Stored scores are swept 8 times in each direction, and kept once."""
    product = _product(precision)
    numbers = 2 * arch.query_width + 2 * arch.kv_width
    fused = Traffic(2 * product * numbers, 3 * product * numbers, product * numbers)
    if precision == "autocast" and not arch.positions:  # rotated queries and keys are float32 and are cast
        cast = 6 * (arch.query_width + arch.kv_width)
        fused += Traffic(cast, cast)
    if arch.has_fused_attention:
        return fused
    scores = arch.heads * keys
    kept = 4 if precision == "float32" else 6  # float32 probabilities, and their cast
    return fused + Traffic(8 * 4 * scores, 8 * 4 * scores, kept * scores)


def _mlp(arch: Architecture, precision: Precision) -> Traffic:
    """The activation: its sweeps, and what it and the down projection keep."""
    width, product = arch.mlp_width, _product(precision)
    if arch.is_gated:
        return Traffic(5 * product * width, 9 * product * width, 4 * product * width)
    if arch.activation == "relu":
        return Traffic(2 * product * width, 3 * product * width, product * width)
    inner = 2 if precision == "bfloat16" else 4  # CUDA's autocast computes powers in float32
    return Traffic(18 * inner * width, 30 * inner * width, (3 * inner + 2 * product) * width)
