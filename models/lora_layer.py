"""One linear layer with a low-rank adapter (LoRA, Hu et al. 2021), in PyTorch alone.

y = x W + b + (alpha / rank) · B A x, with A [rank, in] random, B [out, rank] zero and W frozen. W belongs to an
``nn.Linear`` or to GPT-2's ``Conv1D``. This module knows nothing about whole models or files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted, and how.

    ``targets`` means what PEFT's ``target_modules`` means: names of modules ("q_proj" is every module whose path ends
    in ".q_proj"), or one regular expression for the whole path. ``alpha / rank`` scales the adapter. ``dropout`` acts
    on the adapter's input.
    """

    targets: tuple[str, ...] | str
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoraConfig.rank={self.rank} must be at least 1")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ValueError(f"LoraConfig.alpha={self.alpha} must be finite and above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoraConfig.dropout={self.dropout} must lie in [0, 1)")
        if not self.targets:
            raise ValueError("LoraConfig.targets is empty; name at least one module, e.g. ('q_proj', 'v_proj')")

    def matches(self, path: str) -> bool:
        """Whether the targets name the module at this path."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, path) is not None
        return any(path == target or path.endswith(f".{target}") for target in self.targets)


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter. A plain layer with its ``weight`` and ``bias`` acts the same."""

    def __init__(self, base: nn.Linear | Conv1D, config: LoraConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.is_transposed = isinstance(base, Conv1D)  # Conv1D keeps [in, out]
        shape = base.weight.shape[::-1] if self.is_transposed else base.weight.shape
        self.out_features, self.in_features = shape
        device = base.weight.device
        bound = 1 / math.sqrt(self.in_features)  # kaiming_uniform(a=√5), as PEFT and nn.Linear
        start = torch.empty(config.rank, self.in_features, dtype=torch.float32).uniform_(
            -bound, bound, generator=generator
        )
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, config.rank, dtype=torch.float32, device=device))
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        self.is_enabled = True
        self._plain_weight: Tensor | None = None  # the base's own weight while the adapter is merged into it

    @property
    def is_merged(self) -> bool:
        """Whether the base's weight holds the adapter now."""
        return self._plain_weight is not None

    @property
    def weight(self) -> Tensor:
        """The weight that acts now, in the base's layout: with the adapter unless it is switched off."""
        if self.is_merged or not self.is_enabled:
            return self.base.weight
        return self.base.weight + self.delta()

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def delta(self) -> Tensor:
        """What the adapter adds to the base's weight, in the weight's layout and dtype."""
        product = self.scale * (self.lora_B @ self.lora_A)
        return (product.T if self.is_transposed else product).to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        if self.is_merged or not self.is_enabled:
            return result
        dropped = F.dropout(x, self.dropout, self.training).to(self.lora_A.dtype)
        return result + F.linear(self.scale * F.linear(dropped, self.lora_A), self.lora_B).to(result.dtype)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside the ``with``, the layer acts without its adapter. ``ppo`` finds adapters by this method's name."""
        if self.is_merged:
            raise ValueError("a merged adapter cannot be switched off; call unmerge(model) first")
        before, self.is_enabled = self.is_enabled, False
        try:
            yield
        finally:
            self.is_enabled = before

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter to the base's weight. A second call does nothing. ``unmerge`` restores the same bits."""
        if not self.is_merged:
            plain = self.base.weight.detach().clone()
            self.base.weight += self.delta()
            self._plain_weight = plain

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo ``merge``. Without a merged adapter this does nothing."""
        if self._plain_weight is not None:
            self.base.weight.copy_(self._plain_weight)
            self._plain_weight = None
