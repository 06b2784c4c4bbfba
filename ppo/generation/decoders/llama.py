"""Llama and its kin: RMS norms, rotary positions, grouped key/value heads, gated MLP.

Mistral adds a sliding window, Qwen2 adds biases, and Qwen3 adds norms on query and key heads. SmolLM is a Llama.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..linear import Linear
from ..transformer import Block, HeadNorm, Network
from .weights import Reader, activation, matrix, pair_rotated, rms_norm, rms_weight, table


def read(model: Any, reader: Reader) -> Network:
    config, base = model.config, model.model
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    rotation = reader.rotation(base.rotary_emb)
    width = int(base.layers[0].self_attn.head_dim)
    rotated = rotation[0].numel()

    def paired(module: Any) -> tuple[Tensor, Tensor | None]:
        weight, bias = matrix(module)
        return pair_rotated(weight, width, rotated), None if bias is None else pair_rotated(bias, width, rotated)

    def qkv(attention: Any) -> Linear:
        return reader.joined([paired(attention.q_proj), paired(attention.k_proj), matrix(attention.v_proj)])

    def head_norm(attention: Any) -> HeadNorm | None:
        if not hasattr(attention, "q_norm"):
            return None
        (query, epsilon), (key, _) = rms_weight(attention.q_norm), rms_weight(attention.k_norm)
        query, key = pair_rotated(query, width, rotated), pair_rotated(key, width, rotated)
        return HeadNorm(torch.stack([query] * heads + [key] * kv_heads), epsilon)

    def block(index: int, layer: Any) -> Block:
        return Block(
            attention_norm=rms_norm(layer.input_layernorm),
            qkv=qkv(layer.self_attn),
            attention_out=reader.linear(layer.self_attn.o_proj),
            mlp_norm=rms_norm(layer.post_attention_layernorm),
            up=reader.linear(layer.mlp.gate_proj, layer.mlp.up_proj),
            gate=activation(config.hidden_act),
            down=reader.linear(layer.mlp.down_proj),
            scale=float(layer.self_attn.scaling),
            window=_window(config, index),
            head_norm=head_norm(layer.self_attn),
        )

    return Network(
        embedding=table(base.embed_tokens),
        rotation=rotation,
        blocks=tuple(block(index, layer) for index, layer in enumerate(base.layers)),
        final_norm=rms_norm(base.norm),
        output=reader.linear(model.lm_head),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=width,
    )


def _window(config: Any, index: int) -> int | None:
    """The number of last tokens that layer ``index`` sees; None for all of them."""
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if types is None or types[index] == "sliding_attention" else None
