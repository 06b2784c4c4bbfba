"""A small config, and a small random model, of every kind of causal LM that transformers can build.

A kind's default config is taken, and every size in it that has a known name is made small. Some kinds need more: sizes
that must agree, or lists with an entry for each layer. These are in ``_CHANGES``; ``_WHOLE`` has configs from nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, CONTEXT, WIDTH, HEADS, HEAD = 61, 64, 32, 4, 8
MOST_WEIGHTS = 3_000_000

_SIZES = {
    WIDTH: "hidden_size n_embd d_model embed_dim n_embed embedding_size word_embed_proj_dim dim lru_width",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dim_ff dff inner_dim d_inner "
    "feed_forward_size ffn_hidden_size dense_intermediate_size mlp_hidden_size intermediate_size_mlp",
    24: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_key_value_heads "
    "num_experts_per_tok moe_topk moe_k top_k_experts n_mamba_heads linear_num_key_heads index_n_heads",
    1: "encoder_layers num_encoder_layers n_group topk_group n_shared_experts bos_token_id bos_index "
    "decoder_start_token_id",
    HEADS: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts linear_num_value_heads rotary_dim time_step_rank mamba_dt_rank",
    HEAD: "head_dim attention_head_dim dim_head d_head d_kv global_head_dim qk_nope_head_dim qk_rope_head_dim "
    "v_head_dim state_size mamba_d_state ssm_state_size mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim "
    "linear_key_head_dim linear_value_head_dim linear_head_dim attention_window_size sliding_window window_size "
    "local_attention hidden_size_per_layer_input laurel_rank index_head_dim",
    CONTEXT: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length context_length mamba_d_ssm "
    "index_topk",
    16: "q_lora_rank kv_lora_rank qk_head_dim",
    VOCAB: "vocab_size vocab_size_per_layer_input",
    0: "pad_token_id pad_index",
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
_SMALL |= dict.fromkeys(("attention_dropout", "dropout", "hidden_dropout_prob"), 0.0)
_PARTS = ("text_config", "decoder", "text_encoder", "audio_encoder", "vision_config", "encoder", "audio_config")
_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")  # an entry for each layer
_NOT_GIVEN = ("model_type", "transformers_version", "architectures", "_name_or_path", "torch_dtype", "dtype")

_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_LATENT = {"qk_rope_head_dim": HEAD, "qk_head_dim": 16, "num_key_value_heads": HEADS, "rope_parameters": _ROPE}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_STATES = ["linear_attention", "full_attention", "linear_attention"]
_LEFT_OUT = object()

_CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1], "layers_block_type": _LEFT_OUT,
              "layer_types": _LEFT_OUT},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(["full_attention", "sliding_attention"], _ROPE),
                            "layer_types": ["full_attention", "sliding_attention"]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"intermediate_size": 48, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
                     "layer_types": ["sliding_attention", "full_attention"] * 2, "altup_num_inputs": 2,
                     "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "gemma4_text": {"per_layer_config": _LEFT_OUT, "num_hidden_layers": 3, "layer_types": _MIXED},
    "gemma4_unified_text": {"per_layer_config": _LEFT_OUT, "num_hidden_layers": 3, "layer_types": _MIXED},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": _LEFT_OUT},
    "granitemoehybrid": {"num_hidden_layers": 3, "layer_types": _STATES},
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4, "layers_block_type": _LEFT_OUT},
    "laguna": {"num_attention_heads_per_layer": [HEADS, HEADS]},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": HEAD, "n_groups": 2},
    "ministral": {"head_dim": HEAD},
    "moshi": {"sliding_window": CONTEXT},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 4,
                       "indexer_compress_ratio": 2, "ngram_vocab_size_base": 50, "split_ngram_parts": 2, "hc_count": 2,
                       "hc_lowrank": 4, "ple_embed_dim": HEAD, "num_hidden_layers": 2,
                       "layer_types": ["linear_attention", "indexed_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "attention", "recurrent"]},
    "rembert": {"output_embedding_size": 24, "input_embedding_size": 16},
    "roc_bert": {"pronunciation_vocab_size": VOCAB, "shape_vocab_size": VOCAB, "pronunciation_embed_dim": 8,
                 "shape_embed_dim": 8},
    "rwkv": {"attention_hidden_size": WIDTH},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1, "layers_block_type": _LEFT_OUT,
              "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
} | dict.fromkeys(
    ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "hy_v4",
     "longcat_flash", "minicpm3", "youtu"), _LATENT,
) | {
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2},
    "dots3_note_text": _LATENT | {"per_layer_config": _LEFT_OUT, "num_hidden_layers": 3,
                                  "layer_types": ["sliding_attention", "indexed_attention", "sliding_attention"],
                                  "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "kimi_linear": _LATENT | {"num_experts_per_token": 2, "num_expert_group": 1},
}  # fmt: skip

_ENCODER_DECODERS = ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus",
                     "plbart")  # fmt: skip
_WHOLE: dict[str, dict[str, Any]] = {
    "dbrx": {"d_model": WIDTH, "n_heads": HEADS, "n_layers": 2, "max_seq_len": CONTEXT,
             "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "hrm_text": {"hidden_size": WIDTH, "intermediate_size": 48, "num_layers_per_stack": 2, "num_hidden_layers": 16,
                 "num_attention_heads": HEADS, "head_dim": HEAD, "max_position_embeddings": CONTEXT,
                 "embedding_scale": 2.0, "prefix_lm": False},
    "prophetnet": {"hidden_size": WIDTH, "num_decoder_layers": 2, "num_encoder_layers": 2, "decoder_ffn_dim": 48,
                   "encoder_ffn_dim": 48, "num_decoder_attention_heads": HEADS, "num_encoder_attention_heads": HEADS,
                   "max_position_embeddings": CONTEXT},
    "reformer": {"attention_head_size": HEAD, "attn_layers": ["local", "lsh", "local"], "axial_pos_shape": [8, 8],
                 "axial_pos_embds_dim": [16, 16], "feed_forward_size": 48, "hidden_size": WIDTH, "num_buckets": 4,
                 "max_position_embeddings": CONTEXT, "num_attention_heads": HEADS, "hash_seed": 0, "is_decoder": True,
                 "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0},
    "xlm": {"emb_dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "causal": True, "max_position_embeddings": CONTEXT,
            "dropout": 0.0, "attention_dropout": 0.0, "pad_index": 0},
    "xlstm": {"hidden_size": 2 * WIDTH, "num_hidden_layers": 2, "num_heads": HEADS, "chunk_size": 8,
              "qk_dim_factor": 1.0, "ffn_round_up_to_multiple_of": 8},
    "zamba2": {"max_position_embeddings": CONTEXT, "hidden_size": WIDTH, "num_hidden_layers": 4, "mamba_d_state": 8,
               "layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3], "kv_channels": HEAD,
               "n_mamba_heads": HEADS, "mamba_headdim": 16, "intermediate_size": 48, "num_attention_heads": HEADS,
               "num_key_value_heads": HEADS, "num_query_groups": HEADS, "chunk_size": 8, "adapter_rank": 4,
               "attention_head_dim": 16, "attention_hidden_size": 2 * WIDTH},
} | {
    name: {"d_model": WIDTH, "decoder_layers": 2, "encoder_layers": 2, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
           "decoder_attention_heads": HEADS, "encoder_attention_heads": HEADS, "max_position_embeddings": CONTEXT,
           "pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None}
    for name in _ENCODER_DECODERS
}  # fmt: skip


def kinds() -> list[str]:
    """Every model type of causal LM that this transformers knows."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(kind: str) -> Any:
    """The small config of a model type. A kind that is not listed here, or a new one, may raise any error."""
    make: Callable[..., Any] = hf.CONFIG_MAPPING[kind]
    if kind in _WHOLE:
        config = make(vocab_size=VOCAB, eos_token_id=None, **_WHOLE[kind])
    else:
        fields = _shrunk(make().to_dict()) | _CHANGES.get(kind, {})
        config = make(**{k: v for k, v in fields.items() if v is not _LEFT_OUT and k not in _NOT_GIVEN})
    if hasattr(config, "is_decoder"):
        config.is_decoder, config.is_encoder_decoder = True, False
    return config


def small_model(kind: str) -> nn.Module:
    """A random model of a model type, in evaluation mode; it never ends a response by itself.

    Its weights are large enough that attention matters. Raises MemoryError for one that is not small.
    """
    torch.manual_seed(0)
    with torch.device("meta"):
        size = sum(p.numel() for p in hf.AutoModelForCausalLM.from_config(small_config(kind)).parameters())
    if size > MOST_WEIGHTS:
        raise MemoryError(f"{size} weights")
    model = hf.AutoModelForCausalLM.from_config(small_config(kind))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.15, generator=generator)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None
    return model.eval()


def _shrunk(fields: dict[str, Any]) -> dict[str, Any]:
    result = {name: _small(name, value) for name, value in fields.items()}
    lists = [name for name in _LISTS if isinstance(result.get(name), list) and result[name]]
    for name in lists:  # each kind of layer once
        result[name] = list(dict.fromkeys(result[name]))
    if lists and "num_hidden_layers" in result:
        count = max([2, *(len(result[name]) for name in lists)])
        result["num_hidden_layers"] = count
        for name in lists:
            result[name] = [result[name][layer % len(result[name])] for layer in range(count)]
    return result


def _small(name: str, value: Any) -> Any:
    if name in _PARTS and isinstance(value, dict):
        return _shrunk(value)
    if name in ("eos_token_id", "eos_index"):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _SMALL[name] if name in _SMALL and (is_number or name == "pad_token_id") else value
