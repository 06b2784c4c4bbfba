"""The models, prompts, rewards and adapters of a golden run, as small as they can be, from fixed seeds.

This module uses only torch, transformers and (for PEFT's adapters) peft, so that it works with any source tree of the
project. It knows nothing about PPO.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

VOCAB, WIDTH, CONTEXT = 32, 16, 48
PROMPTS = [
    {"prompt": [2 + (7 * i + 5 * j * j) % (VOCAB - 2) for j in range(1 + 3 * i % 7)], "weight": 0.25 * (i % 4)}
    for i in range(11)
]
"""Token ids of 1 to 7 tokens, each with a number that the reward uses."""
RETAIN = [[2 + (3 * i + 11 * j) % (VOCAB - 2) for j in range(5 + 4 * i)] for i in range(4)]
"""Texts of 5 to 17 token ids."""


def build(family: str, *, layers: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A causal LM with random weights that are large enough to prefer some tokens. Token 1 ends a response."""
    common = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.15}
    half = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    half |= {"max_position_embeddings": CONTEXT}
    configs: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(**common, **half, num_key_value_heads=2, attention_dropout=0.1),
        "neox": lambda: transformers.GPTNeoXConfig(**common, **half, attention_dropout=0.1, hidden_dropout=0.1),
        "gpt2": lambda: transformers.GPT2Config(
            **common,
            n_embd=WIDTH,
            n_inner=32,
            n_layer=layers,
            n_head=2,
            n_positions=CONTEXT,
            resid_pdrop=0.1,
            attn_pdrop=0.1,
        ),
        "opt": lambda: transformers.OPTConfig(
            vocab_size=VOCAB,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
            init_std=0.15,
            hidden_size=WIDTH,
            ffn_dim=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            word_embed_proj_dim=WIDTH,
            max_position_embeddings=CONTEXT,
        ),
        "neo": lambda: transformers.GPTNeoConfig(
            **common,
            hidden_size=WIDTH,
            num_layers=layers,
            num_heads=2,
            max_position_embeddings=CONTEXT,
            attention_types=[[["global", "local"], layers // 2]],
            window_size=5,
        ),
        "bloom": lambda: transformers.BloomConfig(**common, hidden_size=WIDTH, n_layer=layers, n_head=2),
    }
    seed_everything(seed)
    more = {"attn_implementation": "eager", "dtype": dtype}
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(configs[family](), **more)
    return model


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, Python and numpy. A checkpoint holds their states."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def run_out_of_memory(model: nn.Module, *, fitting: int) -> None:
    """From now on, memory runs out when more than ``fitting`` sequences go through at once; in copies as well.

    Every embedding's call is replaced: a hook would send the sampler through the model's own forward.
    """
    embedding: Any = model.get_input_embeddings()
    embedding.fitting = fitting
    nn.Embedding.__call__ = _called_within_memory  # type: ignore[method-assign]


def _called_within_memory(module: Any, ids: Tensor) -> Any:
    if hasattr(module, "fitting") and ids.shape[0] > module.fitting:
        raise torch.OutOfMemoryError("CUDA out of memory: a golden run pretends it")
    return nn.Module.__call__(module, ids)


# ---------------------------------------------------------------------- adapters


class Adapted(nn.Module):
    """A frozen linear layer with an adapter of rank 2: y = W x + A B x. The adapter can be switched off.

    It describes the linear layer that it replaces (``weight``, ``bias``, ``is_transposed``), as the fast decoders
    require.
    """

    is_transposed = False

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        return result + x @ self.down.T @ self.up.T if self.is_on else result

    @property
    def weight(self) -> Tensor:
        """The weight of the layer that it replaces, with the adapter merged in if it is on."""
        return self.base.weight + self.up @ self.down if self.is_on else self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer that it replaces."""
        return self.base.bias

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the context the layer is its base layer alone."""
        was_on, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = was_on


def adapt(model: nn.Module, kind: str, *, seed: int = 1) -> nn.Module:
    """The model with an adapter: "own" is :class:`Adapted`, "peft" a new LoRA of PEFT, "tuned" a LoRA that is not 0.

    The own adapter needs no package, so a checkpoint with it can be resumed everywhere.
    """
    seed_everything(seed)
    if kind == "own":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for block in model.model.layers:
            for name in ("q_proj", "v_proj"):
                setattr(block.self_attn, name, Adapted(getattr(block.self_attn, name)))
        return model
    import peft

    is_gpt2 = hasattr(model, "transformer")
    targets = ["c_attn"] if is_gpt2 else ["q_proj", "v_proj"]
    adapted: nn.Module = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, fan_in_fan_out=is_gpt2)
    )
    for name, parameter in adapted.named_parameters():
        if kind == "tuned" and "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return adapted


# ---------------------------------------------------------------------- rewards and references


def score(samples: list[Any]) -> list[float]:
    """One number per response: the share of multiples of three, plus a little for a long one that ends by itself."""
    return [
        sum(i % 3 == 0 for i in s.ids) / len(s.ids) + s.row["weight"] * len(s.ids) / 8 + 0.5 * s.is_ended
        for s in samples
    ]


def token_scores(samples: list[Any]) -> list[list[float]]:
    """One number per token."""
    return [[(i % 5) / 4 - s.row["weight"] for i in s.ids] for s in samples]


def noisy(samples: list[Any]) -> list[float]:
    """Scores that also depend on the global generators. A resume must restore the states of these generators."""
    noise = [float(torch.rand(())) + random.random() + float(np.random.rand()) for _ in samples]  # noqa: NPY002
    return [10 * x + y for x, y in zip(score(samples), noise, strict=True)]


def below_the_policy(generation: Any, samples: Any) -> Tensor:
    """A reference as a function: it is a little less sure than the policy, by an amount that depends on the token."""
    return generation.logprobs - 0.1 * (generation.tokens % 4).to(generation.logprobs.dtype)


REWARDS = {"score": score, "token_scores": token_scores, "noisy": noisy}
