"""GPT-Neo: attention without scaling. Layers that see the whole past alternate with layers that see a window."""

from __future__ import annotations

from typing import Any

from ..transformer import Block, Network
from .weights import Reader, activation, layer_norm, table


def read(model: Any, reader: Reader) -> Network:
    config, base = model.config, model.transformer

    def block(layer: Any) -> Block:
        attention = layer.attn.attention
        return Block(
            attention_norm=layer_norm(layer.ln_1),
            qkv=reader.linear(attention.q_proj, attention.k_proj, attention.v_proj),
            attention_out=reader.linear(attention.out_proj),
            mlp_norm=layer_norm(layer.ln_2),
            up=reader.linear(layer.mlp.c_fc, activation=activation(config.activation_function)),
            down=reader.linear(layer.mlp.c_proj),
            scale=1.0,
            window=config.window_size if layer.attn.attention_type == "local" else None,
        )

    return Network(
        embedding=table(base.wte),
        positions=table(base.wpe),
        blocks=tuple(block(layer) for layer in base.h),
        final_norm=layer_norm(base.ln_f),
        output=reader.linear(model.lm_head),
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_width=config.hidden_size // config.num_heads,
    )
