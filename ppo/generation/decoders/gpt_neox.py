"""GPT-NeoX and Pythia: attention and MLP read the same input, and a part of each head is rotated by position.

Query, key and value of a head are stored together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..linear import Linear
from ..transformer import Block, Network
from .weights import Reader, activation, layer_norm, matrix, pair_rotated, table


def read(model: Any, reader: Reader) -> Network:
    config, base = model.config, model.gpt_neox
    heads = config.num_attention_heads
    width = config.hidden_size // heads
    rotation = reader.rotation(base.rotary_emb)
    rotated = rotation[0].numel()

    def split(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = torch.unflatten(tensor, 0, (heads, 3, width)).unbind(1)
        pairs = [pair_rotated(part.flatten(0, 1), width, rotated) for part in (query, key)]
        return pairs[0], pairs[1], value.flatten(0, 1)

    def qkv(module: Any) -> Linear:
        weight, bias = matrix(module)
        biases = split(bias) if bias is not None else (None, None, None)
        return reader.joined(list(zip(split(weight), biases, strict=True)))

    def block(layer: Any) -> Block:
        return Block(
            attention_norm=layer_norm(layer.input_layernorm),
            qkv=qkv(layer.attention.query_key_value),
            attention_out=reader.linear(layer.attention.dense),
            mlp_norm=layer_norm(layer.post_attention_layernorm),
            up=reader.linear(layer.mlp.dense_h_to_4h, activation=activation(config.hidden_act)),
            down=reader.linear(layer.mlp.dense_4h_to_h),
            scale=width**-0.5,
        )

    return Network(
        embedding=table(base.embed_in),
        rotation=rotation,
        blocks=tuple(block(layer) for layer in base.layers),
        final_norm=layer_norm(base.final_layer_norm),
        output=reader.linear(model.get_output_embeddings()),  # its name differs between versions of transformers
        num_heads=heads,
        num_kv_heads=heads,
        head_width=width,
        residual="parallel" if config.use_parallel_residual else "sequential",
    )
