"""The tokens that top-k and top-p left at a position, packed into bits, so that an update can replay them.

A set takes ceil(V / 8) bytes a response token, whatever the filter keeps: 6.3 kB for GPT-2's vocabulary of 50,257. A
list of ids would need more as soon as one nucleus holds a 32nd of the vocabulary. This module knows no model and no
filter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_BITS = 8


def pack(is_kept: Tensor) -> Tensor:
    """Bool [N, V] as uint8 [N, ceil(V / 8)]; bit i of byte j is token 8 j + i."""
    missing = -is_kept.shape[-1] % _BITS
    bits = pad(is_kept.byte(), (0, missing)).view(*is_kept.shape[:-1], -1, _BITS)
    return (bits << torch.arange(_BITS, dtype=torch.uint8, device=bits.device)).sum(dim=-1, dtype=torch.uint8)


def unpack(packed: Tensor, vocab_size: int) -> Tensor:
    """Uint8 [N, ceil(V / 8)] as bool [N, V]. Raises ValueError for sets of another vocabulary."""
    if packed.shape[-1] != -(-vocab_size // _BITS):
        raise ValueError(
            f"kept_sets holds {packed.shape[-1]} bytes a token: wanted {-(-vocab_size // _BITS)} for V={vocab_size}"
        )
    bits = (packed.unsqueeze(-1) >> torch.arange(_BITS, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(-2)[..., :vocab_size].bool()
