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

    def block(layer: Any) -> Block:
        return Block(
            attention_norm=layer_norm(layer.ln_1),
            qkv=reader.linear(layer.attn.c_attn),
            attention_out=reader.linear(layer.attn.c_proj),
            mlp_norm=layer_norm(layer.ln_2),
            up=reader.linear(layer.mlp.c_fc, activation=activation(config.activation_function)),
            down=reader.linear(layer.mlp.c_proj),
            scale=getattr(layer.attn, "scaling", width**-0.5),  # without it, SDPA scales every layer alike
        )

    return Network(
        embedding=table(base.wte),
        positions=table(base.wpe),
        blocks=tuple(block(layer) for layer in base.h),
        final_norm=layer_norm(base.ln_f),
        output=reader.linear(model.lm_head),
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_width=width,
    )
