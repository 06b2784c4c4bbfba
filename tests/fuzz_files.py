"""Small good files without what usually writes them: .npy headers, a GGUF header, a point; and a GGUF model."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

SUMMARY = {
    "forget/passages": 4, "forget/exact": 0.0, "never/exact": 0.0, "forget/bleu": 4.0, "forget/true_token_p": 0.5,
    "forget/empty": 0.0,
    "forget/loop": 0.0, "forget/garbled": 0.0, "forget/distinct_2_ratio": 1.0, "forget/length_ratio": 1.0,
    "forget/output_nll": 2.0, "forget/exact_sampled": 0.1, "never/bleu": 4.0, "never/true_token_p": 0.4,
    "never/length_ratio": 1.0, "keep/exact": 1.0, "holdout/perplexity": 20.0, "utility/cloze": 0.3,
}  # fmt: skip


def point(method: str = "demem", kind: str = "training", **changes: Any) -> dict[str, Any]:
    """A point of a comparison as demem.py compare stores it."""
    return {
        "method": method, "kind": kind, "knob": "retain_coef" if kind == "training" else "", "value": 1.0,
        "is_default": True, "seed": 0, "size": 4, "cost": {"seconds": 1.0, "flops": 1e9},
        "source": "Nobody 2024, eq. 1", "notes": {"reward": "BLEU"}, "text_to_keep": {"keep": 0.0, "keep_shown": 0.5},
        "kept": {"texts": 8, "tokens": 90, "own": 5, "records": 1},
        "tuning": {"value": 1.0, "tried": {"1": {"loss": 0.1}, "2": {"loss": 0.2}}, "seed": 0, "passages": {"keep": 2}},
        "budget": {"updates": 16, "most_updates": 16, "update_rows": 8, "rows": 40, "forget_on": "passage",
                   "forget_tokens": 900.5, "keep_tokens": 800.5, "early_end": False, "look_every": 0, "own_rows": 10,
                   "siblings": 0, "flops": 1e9},
        "summary": dict(SUMMARY), "paper": {"paper/n_bleu": 99.0}, "settings": {"num_samples": 4, "top_p": 1.0},
        "signatures": {"bleu": "BLEU"}, "meta": {"command": "x"},
        "attacks": [{"name": "any of these", "groups": {"forget": {"exact": 0.0}, "never": {"exact": 0.0}},
                     "over_never": {"forget": {"exact": {"value": 0.0, "interval": [-0.1, 0.1]}}}}],
        "values": {"keep": {"of": "abc", "exact": [1, 0, 1]}, "texts": {"of": "d", "nll": [9.5], "tokens": [4]}},
        "intervals": {"forget/exact": [0.0, 0.1], "never/exact": [0.0, 0.1], "keep/exact": [0.9, 1.0]}, **changes,
    }  # fmt: skip


def npy(header: str) -> bytes:
    text = header.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(30)


def gguf() -> bytes:
    """A small GGUF header with keys of most types, and one tensor."""

    def string(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    words = b"".join(string(word) for word in (b"a", b"b", b"cc"))
    return b"".join([
        b"GGUF", struct.pack("<IQQ", 3, 1, 4),
        string(b"llama.block_count"), struct.pack("<II", 4, 1),
        string(b"general.name"), struct.pack("<I", 8), string(b"tiny"),
        string(b"tokenizer.ggml.tokens"), struct.pack("<IIQ", 9, 8, 3), words,
        string(b"tokenizer.ggml.scores"), struct.pack("<IIQ", 9, 6, 3), bytes(12),
        string(b"token_embd.weight"), struct.pack("<IQQIQ", 2, 4, 3, 0, 0), bytes(64),
    ])  # fmt: skip


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer_json: dict) -> None:
    """Write a Llama in float32 with a byte-level BPE tokenizer, as llama.cpp's converter does."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer_json["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(merge) for merge in tokenizer_json["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for key, tensor in model.state_dict().items():
        array = tensor.numpy()
        if key.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp orders the rotary halves differently
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if key.startswith("model.layers."):
            _, _, layer, rest = key.split(".", 3)
            name = f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"
        else:
            outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
            name = (outer | {"lm_head.weight": "output.weight"})[key]
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
