"""The one fused step that all known families share, over flat rows of tokens.

A :class:`Network` holds a model's weights in the form that the step needs: query, key and value in one product, gate
and up in one product, the two dimensions of a rotary pair next to each other. An :data:`Attend` function computes
attention, so that prefill and decoding share all other code. This module knows no Hugging Face class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import Activation, Linear, activate

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, query [N, heads, width], key and value [N, 2, kv heads, width]) -> attended values [N, heads * width]."""


@dataclass(frozen=True)
class LayerNorm:
    """Layer norm over the last dimension."""

    weight: Tensor | None
    bias: Tensor | None
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)


class RMSNorm:
    """weight · x / sqrt(mean(x²) + epsilon), as weight · √H · x / sqrt(|x|² + H · epsilon).

    On the CPU ``F.rms_norm`` is seven operations one after another. This is four, one of which is a vector's length.
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        size = weight.numel()
        self._precision = torch.promote_types(weight.dtype, torch.float32)
        self._weight = (weight.to(self._precision) * math.sqrt(size)).to(weight.dtype)
        self._floor = torch.full((), math.sqrt(size * epsilon), dtype=self._precision, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self._precision)
        return (x / torch.hypot(length, self._floor)).to(x.dtype).mul_(self._weight)


Norm = LayerNorm | RMSNorm


@dataclass(frozen=True)
class HeadNorm:
    """RMS norm of each query and key head, with a weight for each: [heads + kv heads, width]."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.epsilon) * self.weight


@dataclass(frozen=True)
class Block:
    """One layer. ``qkv`` gives all queries, all keys, all values. A token sees the last ``window`` tokens; None: all.

    ``gate`` is the activation of a gated MLP, whose ``up`` gives gate and up next to each other. It is None for a plain
    MLP, whose ``up`` includes its activation.
    """

    attention_norm: Norm
    qkv: Linear
    attention_out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear
    scale: float
    window: int | None = None
    gate: Activation | None = None
    head_norm: HeadNorm | None = None

    def mlp(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.gate is not None:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = activate(gate, self.gate).mul_(up)
        return self.down(hidden)


@dataclass(frozen=True)
class Network:
    """A causal LM in the form that the shared step needs.

    ``residual``: "sequential" (norm, attention, add; norm, MLP, add), "parallel" (both read the same input), or "post"
    (norms after the additions). ``positions`` [L, H] is a learned table whose row p is for position p. ``rotation``
    [L, R/2, 2], cosine and sine, rotates the first R dimensions of every query and key head, in adjacent pairs.
    """

    embedding: Tensor
    blocks: tuple[Block, ...]
    output: Linear
    num_heads: int
    num_kv_heads: int
    head_width: int
    residual: Literal["sequential", "parallel", "post"] = "sequential"
    positions: Tensor | None = None
    rotation: Tensor | None = None
    final_norm: Norm | None = None
    project_in: Linear | None = None
    project_out: Linear | None = None

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Hidden states [N, H] that feed the output layer; ``tokens`` and ``positions`` int64 [N].

        With ``wanted`` int64 [M] only those M of the N come back, and most of the last layer is computed for them only.
        """
        x = F.embedding(tokens, self.embedding)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x += F.embedding(positions, self.positions)
        rotation = rotation_at(self.rotation, positions) if self.rotation is not None else None
        for layer, block in enumerate(self.blocks):
            is_last = layer == len(self.blocks) - 1
            x = self._layer(layer, block, x, rotation, attend, wanted if is_last else None)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return self.project_out(x) if self.project_out is not None else x

    def _layer(
        self, layer: int, block: Block, x: Tensor, rotation: Tensor | None, attend: Attend, wanted: Tensor | None
    ) -> Tensor:
        attention_input = x if self.residual == "post" else block.attention_norm(x)
        attended = self._attention(layer, block, attention_input, rotation, attend)
        if wanted is not None:
            attended, x = attended[wanted], x[wanted]
        attended = block.attention_out(attended)
        if self.residual == "post":
            x = block.attention_norm(attended.add_(x))
            return block.mlp_norm(block.mlp(x).add_(x))
        if self.residual == "parallel":
            return attended.add_(block.mlp(block.mlp_norm(x))).add_(x)
        x = attended.add_(x)
        return block.mlp(block.mlp_norm(x)).add_(x)

    def _attention(self, layer: int, block: Block, x: Tensor, rotation: Tensor | None, attend: Attend) -> Tensor:
        heads = block.qkv(x).view(len(x), -1, self.head_width)
        if block.head_norm is not None or rotation is not None:
            query_key = heads[:, : self.num_heads + self.num_kv_heads]
            if block.head_norm is not None:
                query_key.copy_(block.head_norm(query_key))
            if rotation is not None:
                rotate_(query_key[..., : 2 * rotation.shape[2]], rotation)
        query, key_value = torch.split(heads, [self.num_heads, 2 * self.num_kv_heads], dim=1)
        return attend(layer, query, torch.unflatten(key_value, 1, (2, self.num_kv_heads)))

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device


def rotation_at(table: Tensor, positions: Tensor) -> Tensor:
    """Rows of a table of cosines and sines in the form that :func:`rotate_` needs: complex [N, 1, R/2].

    Under torch.compile, which makes no code for complex numbers, they are real: [N, 1, R/2, 2].
    """
    rows = table[positions].unsqueeze(1)
    return rows if torch.compiler.is_compiling() else torch.view_as_complex(rows)


def rotate_(x: Tensor, rotation: Tensor) -> None:
    """Rotate adjacent pairs of x [N, heads, R] in place, in float32 or better, by rows from :func:`rotation_at`."""
    if not rotation.is_complex():
        (left, right), (cosine, sine) = torch.unflatten(x, -1, (-1, 2)).unbind(-1), rotation.unbind(-1)
        turned = torch.stack([left * cosine - right * sine, left * sine + right * cosine], dim=-1)
        x.copy_(turned.flatten(-2))
        return
    if x.dtype in (torch.float32, torch.float64):
        torch.view_as_complex(torch.unflatten(x, -1, (-1, 2))).mul_(rotation)
        return
    turned = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2))) * rotation
    x.copy_(torch.view_as_real(turned).flatten(-2))
