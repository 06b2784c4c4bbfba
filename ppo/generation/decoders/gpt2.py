"""GPT-2: Conv1D weights (stored transposed), learned positions, optional scaling by layer."""

from __future__ import annotations

from typing import Any

from ..transformer import Block, Network
from .weights import Reader, Unsupported, activation, layer_norm, table


def read(model: Any, reader: Reader) -> Network:
    config, base = model.config, model.transformer
    if config.add_cross_attention:
        raise Unsupported("it has cross-attention")
    width = config.n_embd // config.n_head

    def block(index: int, layer: Any) -> Block:
        scale = width**-0.5 if config.scale_attn_weights else 1.0
        return Block(
            attention_norm=layer_norm(layer.ln_1),
            qkv=reader.linear(layer.attn.c_attn),
            attention_out=reader.linear(layer.attn.c_proj),
            mlp_norm=layer_norm(layer.ln_2),
            up=reader.linear(layer.mlp.c_fc, activation=activation(config.activation_function)),
            down=reader.linear(layer.mlp.c_proj),
            scale=scale / (index + 1) if config.scale_attn_by_inverse_layer_idx else scale,
        )

    return Network(
        embedding=table(base.wte),
        positions=table(base.wpe),
        blocks=tuple(block(index, layer) for index, layer in enumerate(base.h)),
        final_norm=layer_norm(base.ln_f),
        output=reader.linear(model.lm_head),
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_width=width,
    )
