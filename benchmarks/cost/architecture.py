"""The shapes of a causal LM that decide what it costs: how many weights, where, and how its layers compute.

The known families are those whose modelling code was read. Another family is an error, not a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Architecture:
    """A decoder of equal blocks. Widths are in numbers, ``positions`` in rows of a learned table (0: rotary).

    ``is_gated``: the MLP has a gate beside its up projection. ``activation``: "gelu_tanh" is transformers' version of
    eight operations. ``has_fused_attention``: scores are never stored (scaled_dot_product_attention).
    ``has_joined_qkv``: query, key and value are one weight in the model already.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    positions: int = 0
    is_tied: bool = True
    is_gated: bool = False
    norm: Literal["layer", "rms"] = "layer"
    activation: Literal["silu", "relu", "gelu_tanh"] = "gelu_tanh"
    has_fused_attention: bool = True
    has_joined_qkv: bool = False
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_mlp_bias: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the linear layers of one block: query, key, value, out; up (and gate), down."""
        attention = [(self.width, self.query_width), *[(self.width, self.kv_width)] * 2, (self.query_width, self.width)]
        inner = [(self.width, self.mlp_width)] * (2 if self.is_gated else 1)
        return (*attention, *inner, (self.mlp_width, self.width))

    @property
    def block_linear_weights(self) -> int:
        """Weights of one block that matrix products use."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def block_parameters(self) -> int:
        qkv = self.query_width + 2 * self.kv_width if self.has_qkv_bias else 0
        out = self.width if self.has_out_bias else 0
        mlp = self.width + self.mlp_width * (2 if self.is_gated else 1) if self.has_mlp_bias else 0
        return self.block_linear_weights + qkv + out + mlp + 2 * self.norm_parameters

    @property
    def norm_parameters(self) -> int:
        return self.width * (2 if self.norm == "layer" else 1)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the token table. The output layer has as many: the same ones if tied, else its own."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All parameters, as ``sum(p.numel())`` counts them."""
        tables = self.embedding_parameters * (1 if self.is_tied else 2) + self.positions * self.width
        return self.layers * self.block_parameters + tables + self.norm_parameters

    @property
    def joined_weights(self) -> int:
        """Weights of one block that the fast decoder copies to join several products into one: QKV; gate and up."""
        qkv = 0 if self.has_joined_qkv else self.width * (self.query_width + 2 * self.kv_width)
        return qkv + (2 * self.width * self.mlp_width if self.is_gated else 0)


def from_config(config: Any, name: str | None = None) -> Architecture:
    """The shape that a transformers config of a known family describes. Raises ValueError for another family."""
    kind = config.model_type
    readers = {"gpt2": _gpt2, "gpt_neo": _gpt_neo, "opt": _opt, "llama": _llama}
    if kind not in readers:
        raise ValueError(f"the cost model does not know model_type={kind!r}: choose from {', '.join(readers)}")
    return readers[kind](config, name or kind)


def _gpt2(config: Any, name: str) -> Architecture:
    return _gelu_model(config, name, config.n_layer, config.n_head, config.n_inner, config.n_positions, is_neo=False)


def _gpt_neo(config: Any, name: str) -> Architecture:
    positions, inner = config.max_position_embeddings, config.intermediate_size
    return _gelu_model(config, name, config.num_layers, config.num_heads, inner, positions, is_neo=True)


def _gelu_model(
    config: Any, name: str, layers: int, heads: int, inner: int | None, positions: int, *, is_neo: bool
) -> Architecture:
    width = config.hidden_size
    return Architecture(
        name, layers, width, heads, heads, width // heads, inner or 4 * width, config.vocab_size, positions,
        is_tied=config.tie_word_embeddings, has_fused_attention=not is_neo, has_joined_qkv=not is_neo,
        has_qkv_bias=not is_neo,
        has_out_bias=True, has_mlp_bias=True,
    )  # fmt: skip


def _opt(config: Any, name: str) -> Architecture:
    width, heads = config.hidden_size, config.num_attention_heads
    if config.word_embed_proj_dim != width:
        raise ValueError(f"the cost model does not know OPT with word_embed_proj_dim={config.word_embed_proj_dim}")
    return Architecture(
        name, config.num_hidden_layers, width, heads, heads, width // heads, config.ffn_dim, config.vocab_size,
        config.max_position_embeddings + 2, is_tied=config.tie_word_embeddings, activation="relu",
        has_qkv_bias=config.enable_bias, has_out_bias=config.enable_bias, has_mlp_bias=config.enable_bias,
    )  # fmt: skip


def _llama(config: Any, name: str) -> Architecture:
    width, heads = config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    return Architecture(
        name, config.num_hidden_layers, width, heads, config.num_key_value_heads, head_width,
        config.intermediate_size, config.vocab_size, is_tied=config.tie_word_embeddings, is_gated=True, norm="rms",
        activation="silu", has_qkv_bias=config.attention_bias, has_out_bias=config.attention_bias,
        has_mlp_bias=config.mlp_bias,
    )  # fmt: skip


def _gpt_neo_of(name: str, layers: int, width: int, heads: int) -> Architecture:
    return Architecture(
        name, layers, width, heads, heads, width // heads, 4 * width, 50257, 2048,
        has_fused_attention=False, has_out_bias=True, has_mlp_bias=True,
    )  # fmt: skip


def _opt_of(name: str, layers: int, width: int, heads: int) -> Architecture:
    return Architecture(
        name, layers, width, heads, heads, width // heads, 4 * width, 50272, 2050,
        activation="relu", has_qkv_bias=True, has_out_bias=True, has_mlp_bias=True,
    )  # fmt: skip


KNOWN = {
    shape.name: shape
    for shape in (
        _gpt_neo_of("gpt-neo-125m", 12, 768, 12),
        _gpt_neo_of("gpt-neo-1.3b", 24, 2048, 16),
        _gpt_neo_of("gpt-neo-2.7b", 32, 2560, 20),
        _opt_of("opt-125m", 12, 768, 12),
        _opt_of("opt-1.3b", 24, 2048, 32),
        _opt_of("opt-2.7b", 32, 2560, 32),
        Architecture(
            "smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, is_gated=True, norm="rms", activation="silu"
        ),
        Architecture(
            "llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256,
            is_tied=False, is_gated=True, norm="rms", activation="silu",
        ),
    )
}  # fmt: skip
