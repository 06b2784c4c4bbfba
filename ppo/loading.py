"""From what a caller names as "the model" to a causal LM and its tokenizer.

This module knows the Hugging Face loaders; it trains nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_model(model: str | Path | nn.Module, tokenizer: Any | None) -> tuple[Any, Any | None]:
    """A loaded model as it is; a hub id or a folder through ``from_pretrained`` in float32, with its tokenizer.

    Raises ValueError, in one sentence, for what cannot be loaded as a causal LM.
    """
    if isinstance(model, nn.Module):
        return model, tokenizer
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model={str(model)!r} cannot be loaded as a causal LM: {reason}") from error
    return loaded, tokenizer
