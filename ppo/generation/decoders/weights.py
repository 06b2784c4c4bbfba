"""Reading weights out of Hugging Face modules. A module that is not exactly as expected is refused.

A layer that is not a plain ``nn.Linear`` or ``Conv1D`` (for example a quantised layer) raises :class:`Unsupported`,
with a reason that a user can read. An adapter may declare that it stands for a plain layer: see :class:`StandIn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..linear import Activation, Linear
from ..transformer import LayerNorm, RMSNorm

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn", "proportional")


class Unsupported(Exception):
    """A model of a known family has something that its decoder does not know. The message says what."""


class StandIn(Protocol):
    """A module that computes what a linear layer with its ``weight`` and ``bias`` would compute in eval mode.

    ``is_transposed`` says that the weight is kept as [in, out]. The library's own LoRA layers are of this kind.
    """

    weight: Tensor
    bias: Tensor | None
    is_transposed: bool


@dataclass(frozen=True)
class Reader:
    """Makes the layers of the shared step from a model's modules.

    The layers are packed for ``rows`` tokens at a time, or not at all if it is None. All weights must be of ``dtype``.
    Positions go up to ``length``.
    """

    rows: int | None
    length: int
    dtype: torch.dtype

    def linear(self, *modules: nn.Module, activation: Activation = "none") -> Linear:
        """One layer for one module, or for several that read the same input; their outputs are concatenated."""
        return self.joined([matrix(module) for module in modules], activation)

    def joined(self, parts: list[tuple[Tensor, Tensor | None]], activation: Activation = "none") -> Linear:
        """The same layer from weights and biases that are already read."""
        for weight, _ in parts:
            if weight.dtype != self.dtype:
                raise Unsupported(f"its weights differ in precision: {weight.dtype} beside {self.dtype}")
        if len(parts) == 1:
            return Linear(*parts[0], activation, rows=self.rows)
        bias = None
        if any(b is not None for _, b in parts):
            bias = torch.cat([b if b is not None else w.new_zeros(len(w)) for w, b in parts])
        return Linear(torch.cat([w for w, _ in parts]), bias, activation, rows=self.rows)

    def rotation(self, module: Any) -> Tensor:
        """Cosine and sine, [length, R/2, 2], from a model's own rotary embedding module."""
        kind = getattr(module, "rope_type", "default")
        if kind not in STATIC_ROTATIONS:
            raise Unsupported(f"its rotary embedding is of type {kind!r}, which depends on the sequence")
        positions = torch.arange(self.length, device=module.inv_freq.device)
        cosine, sine = module(torch.zeros(1, dtype=torch.float32, device=positions.device), positions.unsqueeze(0))
        half = cosine.shape[-1] // 2
        return torch.stack([cosine[0, :, :half], sine[0, :, :half]], dim=-1)


def is_stand_in(module: Any) -> bool:
    """Whether a module is a :class:`StandIn`."""
    return hasattr(module, "is_transposed")  # not ``weight``: reading it may compute it


def matrix(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of a plain linear layer."""
    if type(module) is nn.Linear:
        return module.weight.detach(), module.bias.detach() if module.bias is not None else None
    if type(module) is Conv1D:
        return module.weight.detach().t(), module.bias.detach()
    if is_stand_in(module):
        weight = module.weight.detach()
        return weight.t() if module.is_transposed else weight, _detached(module.bias)
    raise Unsupported(f"it has a {type(module).__module__}.{type(module).__name__} where a plain linear layer belongs")


def layer_norm(module: nn.Module) -> LayerNorm:
    if type(module) is not nn.LayerNorm:
        raise Unsupported(f"it has a {type(module).__name__} where a LayerNorm belongs")
    return LayerNorm(_detached(module.weight), _detached(module.bias), module.eps)


def rms_norm(module: Any) -> RMSNorm:
    return RMSNorm(*rms_weight(module))


def rms_weight(module: Any) -> tuple[Tensor, float]:
    """Weight and epsilon of an RMS norm."""
    if not type(module).__name__.endswith("RMSNorm") or module.weight.dim() != 1:
        raise Unsupported(f"it has a {type(module).__name__} where an RMS norm belongs")
    return module.weight.detach(), float(module.variance_epsilon)


def table(module: nn.Module) -> Tensor:
    """The weight of a plain embedding."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None:
        raise Unsupported(f"it has a {type(module).__name__} where a plain embedding belongs")
    return module.weight.detach()


def activation(name: Any) -> Activation:
    if name not in _ACTIVATIONS:
        raise Unsupported(f"its activation {name!r} is unknown to the decoder")
    return _ACTIVATIONS[name]


def pair_rotated(tensor: Tensor, width: int, rotated: int) -> Tensor:
    """Reorder the rows of query or key weights [heads * width, …] so that rotary pairs (i, i + R/2) become neighbours.

    Queries and keys are reordered in the same way, so their products stay the same.
    """
    half = torch.arange(rotated // 2, device=tensor.device)
    order = torch.stack([half, half + rotated // 2], dim=1).flatten()
    order = torch.cat([order, torch.arange(rotated, width, device=tensor.device)])
    return torch.unflatten(tensor, 0, (-1, width))[:, order].flatten(0, 1)


def _detached(parameter: Tensor | None) -> Tensor | None:
    return parameter.detach() if parameter is not None else None
