"""Loading the lab's twins from the weights in this folder. This module knows nothing about their training."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).parent / "weights"
TWINS = ("memorised", "deduplicated", "retain-only", "without-forget")


def load_twin(
    twin: str, *, dtype: torch.dtype = torch.float32, folder: Path = WEIGHTS
) -> tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]:
    """(model, tokenizer) of one twin: float16 weights cast to ``dtype``. ValueError for an unknown or missing twin."""
    if twin not in TWINS:
        raise ValueError(f"lab model {twin!r} is unknown; choose one of {', '.join(f'lab:{name}' for name in TWINS)}")
    path = folder / f"{twin}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing; run `python -m models.lab` to train the lab's twins")
    model = GPTNeoForCausalLM(GPTNeoConfig.from_json_file(folder / "config.json"))
    tensors = load_file(path)
    model.load_state_dict(tensors | {"lm_head.weight": tensors["transformer.wte.weight"]})
    model.tie_weights()
    return model.to(dtype).eval(), load_tokenizer(folder)


def load_tokenizer(folder: Path = WEIGHTS) -> PreTrainedTokenizerFast:
    """The lab's tokenizer. Its only special token is ``<|endoftext|>``, id 0, which ends a document."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
