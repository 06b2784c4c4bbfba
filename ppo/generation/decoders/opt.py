"""OPT: positions start at row 2 of their table. The 350m model projects embeddings and adds before norms."""

from __future__ import annotations

from typing import Any

from ..transformer import Block, Network
from .weights import Reader, activation, layer_norm, table


def read(model: Any, reader: Reader) -> Network:
    config, base = model.config, model.model.decoder
    width = config.hidden_size // config.num_attention_heads

    def block(layer: Any) -> Block:
        attention = layer.self_attn
        return Block(
            attention_norm=layer_norm(layer.self_attn_layer_norm),
            qkv=reader.linear(attention.q_proj, attention.k_proj, attention.v_proj),
            attention_out=reader.linear(attention.out_proj),
            mlp_norm=layer_norm(layer.final_layer_norm),
            up=reader.linear(layer.fc1, activation=activation(config.activation_function)),
            down=reader.linear(layer.fc2),
            scale=width**-0.5,
        )

    return Network(
        embedding=table(base.embed_tokens),
        positions=table(base.embed_positions)[base.embed_positions.offset :],
        blocks=tuple(block(layer) for layer in base.layers),
        final_norm=layer_norm(base.final_layer_norm) if base.final_layer_norm is not None else None,
        project_in=reader.linear(base.project_in) if base.project_in is not None else None,
        project_out=reader.linear(base.project_out) if base.project_out is not None else None,
        output=reader.linear(model.lm_head),
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_width=width,
        residual="sequential" if config.do_layer_norm_before else "post",
    )
