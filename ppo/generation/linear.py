"""Linear layers for decoding: weights are packed once per rollout if that is faster, else ``F.linear`` is called.

On the CPU ``F.linear`` converts a weight to oneDNN's blocked layout on every call. A rollout makes hundreds of calls
with the same weight, for a few rows each. The operators used here are private to torch. If they are missing, or the
device is not a CPU, everything goes through ``F.linear``. This module knows nothing about models.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "silu"]

# (name, scalars, algorithm) of oneDNN's post-operations
_POST_OPERATION: dict[Activation, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "relu": ("relu", [], ""),
    "silu": ("swish", [], ""),
}

# Measured on one core of an AMD Zen 4, GFLOP/s plain / packed. float32: 176x176, 64 rows 91/80; 528x176, 64 rows 94/99,
# 1,024 rows 105/113; 704x176, 64 rows 95/102; 960x576, 8 rows 60/90, 1 row 27/24; 49152x576, 32 rows 57/98. bfloat16:
# 176x176, 1 row 3/4; 3072x576, 8 rows 119/185. The add and mul post-operations for residuals and gates were 5 to 20
# times slower than a separate step.
_FLOAT32_MIN_ROWS = 2
_FLOAT32_MIN_WEIGHTS = 90_000


class Linear:
    """``activation(x W^T + b)``: weight [out, in], bias [out] or None, x [N, in] -> [N, out].

    ``rows`` is the number of rows of most calls. It decides whether the weight is packed; None forbids packing.
    After a change of the weight make a new object: a packed weight is a copy.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: Activation = "none", *, rows: int | None
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._activation = activation
        self._post = _POST_OPERATION[activation]
        self.is_packed = rows is not None and pays_to_pack(weight, rows)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows) if self.is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_packed:
            # ``default`` saves the search for the right overload on every call
            result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, *self._post)
            return result
        return activate(F.linear(x, self._weight, self._bias), self._activation)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of x, which is overwritten if that is possible."""
    match activation:
        case "none":
            return x
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return x.relu_()
        case "silu":
            return F.silu(x, inplace=True)


def pays_to_pack(weight: Tensor, rows: int) -> bool:
    """Whether the packed operator exists for this weight and was measured to be faster for ``rows`` rows."""
    if weight.device.type != "cpu" or not has_packed_operators():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float32:
        return rows >= _FLOAT32_MIN_ROWS and weight.numel() >= _FLOAT32_MIN_WEIGHTS
    return False


def has_packed_operators() -> bool:
    """Whether this build of torch has oneDNN and the private operators for packed weights."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return bool(torch._C._has_mkldnn) and all(hasattr(torch.ops.mkldnn, name) for name in names)
