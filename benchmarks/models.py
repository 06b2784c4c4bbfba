"""Untrained models of known shapes, for measuring: speed and memory do not depend on the weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.load import load
from ppo.lm.backbone import vocabulary_size

SHAPES = {
    "random:smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "random:small-llama": {
        "vocab_size": 49152, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 6, "num_key_value_heads": 6,
    },
    "random:tiny": {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    },
}  # fmt: skip


def llama_config(name: str, **changes: int) -> LlamaConfig:
    """One of ``SHAPES``, with some of its sizes changed; no EOS, so that every response has its full length."""
    sizes = {"max_position_embeddings": 2048, "tie_word_embeddings": True, **SHAPES[name], **changes}
    return LlamaConfig(bos_token_id=None, eos_token_id=None, pad_token_id=0, **sizes)


def make_model(name: str, dtype: torch.dtype = torch.float32, **changes: int) -> Any:
    """An untrained Llama of ``SHAPES`` with weights from seed 0, or whatever ``models.load`` knows; on the CPU."""
    if name not in SHAPES:
        return load(name, dtype=dtype).model
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(name, **changes)).to(dtype).eval()


def random_prompts(model: Any, count: int, length: int) -> list[list[int]]:
    """``count`` prompts of ``length`` random token ids of the model, from seed 0."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, vocabulary_size(model), (count, length), generator=generator).tolist()
