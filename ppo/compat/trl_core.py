"""What old scripts import from ``trl`` and ``trl.core`` besides the trainer. It draws from the global generators."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from ..config import Sampling
from ..generation import generate
from .trl_generation import warn_of_other_distribution
from .trl_model import AutoModelForCausalLMWithValueHead


class LengthSampler:
    """A random length from ``min_value`` to ``max_value`` - 1, drawn from numpy's global generator."""

    def __init__(self, min_value: int, max_value: int) -> None:
        if min_value >= max_value:
            raise ValueError(f"LengthSampler: min_value={min_value} must be below max_value={max_value}")
        self._range = (min_value, max_value)

    def __call__(self) -> int:
        return int(np.random.randint(*self._range))  # noqa: NPY002


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def respond_to_batch(
    model: AutoModelForCausalLMWithValueHead, queries: Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Responses of exactly ``txt_len`` tokens, int64 [B, txt_len], to queries of one length, int64 [B, P].

    An EOS does not end a response. Random numbers come from torch's global generator, which ``set_seed`` seeds.
    """
    sampling = Sampling(response_length=txt_len, top_k=int(top_k), top_p=top_p, eos_ids=())
    warn_of_other_distribution(sampling)
    seed = int(torch.randint(2**62, (), device="cpu"))
    return generate(model.pretrained_model, queries.tolist(), sampling, seed=seed).tokens
