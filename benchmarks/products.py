"""What every decoder needs: its matrix products, and the memory that they take beside the model's weights."""

from __future__ import annotations

import torch

from ppo.generation.linear import Linear
from ppo.generation.transformer import Network


@torch.no_grad()
def products(network: Network, rows: int, *, last: int) -> None:
    """Compute all linear layers once, in their order, on ``rows`` rows; the output layer on ``last`` of them."""
    hidden = torch.zeros(rows, network.embedding.shape[1], dtype=network.dtype, device=network.device)
    if network.project_in is not None:
        hidden = network.project_in(hidden)
    for block in network.blocks:
        attended = block.qkv(hidden)[:, : block.attention_out.in_features].contiguous()
        hidden = block.attention_out(attended)
        block.down(block.up(hidden)[:, : block.down.in_features].contiguous())
    if network.project_out is not None:
        network.project_out(hidden[:last])
    network.output(torch.zeros(last, network.output.in_features, dtype=network.dtype, device=network.device))


def linears(network: Network) -> list[Linear]:
    """All linear layers of a step."""
    layers = [layer for b in network.blocks for layer in (b.qkv, b.attention_out, b.up, b.down)]
    ends = [network.project_in, network.project_out, network.output]
    return [*layers, *(layer for layer in ends if layer is not None)]


def needed_bytes(network: Network, slots: int, cache_bytes: float) -> float:
    """Bytes of the cache, one float32 matrix of logits for all slots, and the decoder's own weights.

    Its own are those that it packed and those that it joined (query, key and value; gate and up). For GPT-2, whose
    query, key and value are joined in the model, this counts one layer too many.
    """
    joined = [layer for b in network.blocks for layer in (b.qkv, *([b.up] if b.gate is not None else []))]
    own = [layer for layer in linears(network) if layer.is_packed or layer in joined]
    weights = sum(layer.in_features * layer.out_features for layer in own)
    return cache_bytes + 4 * slots * network.output.out_features + weights * network.embedding.element_size()
