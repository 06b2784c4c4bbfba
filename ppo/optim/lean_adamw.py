"""AdamW for weights or moments in bfloat16: computed in float32, rounded at random where small steps would vanish.

A bfloat16 number has 8 bits. A step of 1e-5 on a weight of 0.02 is far below the last of them, and so is the change of
a second moment with beta2 = 0.999. Rounded to nearest, both would never move. So they are rounded up or down at random,
with probabilities that make the mean right. A first moment changes by 10 % a step, so it is rounded to nearest.

The random bits depend on the seed, the number of the update and the parameter, so a run resumes to the same bits.
This module knows tensors, nothing about schedules or losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..lm.precision import statistics_dtype

STEP_DEVICE = torch.device("cpu")  # of the step counts: the arithmetic needs them as numbers
_BLOCK = 2**20  # elements that are computed at once, so that float32 copies take little memory


class LeanAdamW:
    """AdamW (Loshchilov and Hutter 2019), with the ``param_groups`` and ``state`` of ``torch.optim.AdamW``.

    ``groups`` are dicts with "params", "lr" and whatever else the caller keeps there; a group may have an "eps" of its
    own. ``moment_dtype`` is the dtype of both moments. Weights keep their own dtype. The arithmetic is in float32
    (float64 for float64).
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        moment_dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.param_groups = [{"eps": eps, **group} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {p: {} for p in self._parameters()}
        self._betas, self._weight_decay = betas, weight_decay
        self._moment_dtype, self._seed = moment_dtype, seed

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group, index)
                index += 1

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    @property
    def moment_dtype(self) -> torch.dtype:
        """The dtype of both moments."""
        return self._moment_dtype

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: Mapping[str, Any], index: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=STEP_DEVICE)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=self._moment_dtype)
        state["step"] += 1
        count = int(state["step"])
        noise = torch.Generator(parameter.device).manual_seed(hash((self._seed, count, index)) % 2**62)
        flat = [x.view(-1) for x in (parameter, gradient.contiguous(), state["exp_avg"], state["exp_avg_sq"])]
        for start in range(0, parameter.numel(), _BLOCK):
            weight, slope, first, second = (x[start : start + _BLOCK] for x in flat)
            self._move_block(weight, slope, first, second, group, count, noise)

    def _move_block(
        self,
        weight: Tensor,
        gradient: Tensor,
        first: Tensor,
        second: Tensor,
        group: Mapping[str, Any],
        count: int,
        noise: torch.Generator,
    ) -> None:
        dtype = statistics_dtype(weight.dtype)
        beta1, beta2 = self._betas
        gradient = gradient.to(dtype)
        m = first.to(dtype).lerp(gradient, 1 - beta1)
        v = second.to(dtype).mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2**count)).add_(group["eps"])
        moved = weight.to(dtype).mul(1 - group["lr"] * self._weight_decay)
        moved.addcdiv_(m, root, value=-group["lr"] / (1 - beta1**count))
        first.copy_(m)
        bits = None
        if torch.bfloat16 in (weight.dtype, second.dtype):
            bits = torch.empty(len(weight), dtype=torch.int32, device=weight.device).random_(generator=noise)
        round_into(second, v, bits)
        round_into(weight, moved, bits >> 15 if bits is not None else None)


def round_into(target: Tensor, values: Tensor, bits: Tensor | None) -> None:
    """Copy ``values`` to ``target``. For bfloat16, round up or down at random so that the mean is right.

    The lowest 16 of ``bits`` int32 [n] are used. They are added to the 16 bits that bfloat16 cuts off, and carry over
    with the probability that those 16 bits stand for. Values must be finite or infinite, not NaN.
    """
    if target.dtype != torch.bfloat16 or bits is None:
        target.copy_(values)
        return
    whole = values.float().view(torch.int32)
    target.copy_(((whole + (bits & 0xFFFF)) & -0x10000).view(torch.float32))
