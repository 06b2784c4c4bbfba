"""AdamW, gradient clipping and the learning-rate schedule for tests/oracle.py, number by number in Python floats."""

from __future__ import annotations

import math
import struct
from types import SimpleNamespace

import torch


class PlainAdamW:
    """Loshchilov and Hutter 2019, alg. 2, with epsilon in either place. ``moments``: count, m and v per parameter."""

    def __init__(self, config: SimpleNamespace) -> None:
        self.config = config
        self.moments: dict[str, tuple[int, list[float], list[float]]] = {}

    def step(self, parameters, ppo_step):
        """Clip all gradients by their common norm, and update every parameter that has one."""
        c = self.config
        gradients = {name: p.grad.flatten().tolist() for name, p in parameters.items() if p.grad is not None}
        norm = math.sqrt(sum(g * g for numbers in gradients.values() for g in numbers))
        shrink = 1.0 if c.max_grad_norm is None else min(1.0, c.max_grad_norm / (norm + 1e-6))  # torch's 1e-6
        factor, own = schedule(c, ppo_step), c.value_learning_rate
        for index, (name, parameter) in enumerate(parameters.items()):
            if name not in gradients:
                continue
            is_value = name.startswith(("critic.", "value_head."))
            rate = factor * (own if is_value and own is not None else c.learning_rate)
            scaled = [g * shrink for g in gradients[name]]
            weights = self.move(name, index, parameter.flatten().tolist(), scaled, rate)
            parameter.data = torch.tensor(weights, dtype=torch.float64).view(parameter.shape)
        return {"update/grad_norm": norm, "update/learning_rate": factor * c.learning_rate}

    def move(self, name, index, weights, gradients, rate):
        """Update one parameter, number by number. Moments are stored in bfloat16 if the config says so."""
        c, zeros = self.config, [0.0] * len(weights)
        count, first, second = self.moments.get(name, (0, zeros, zeros))
        count, b1, b2 = count + 1, c.adam_beta1, c.adam_beta2
        m = [b1 * x + (1 - b1) * g for x, g in zip(first, gradients, strict=True)]
        v = [b2 * x + (1 - b2) * g * g for x, g in zip(second, gradients, strict=True)]
        moved = []
        for w, x, y in zip(weights, m, v, strict=True):
            w -= rate * c.weight_decay * w
            if c.adam_eps_style == "tensorflow":
                w -= rate * math.sqrt(1 - b2**count) / (1 - b1**count) * x / (math.sqrt(y) + c.adam_eps)
            else:
                w -= rate * x / (1 - b1**count) / (math.sqrt(y / (1 - b2**count)) + c.adam_eps)
            moved.append(w)
        if c.moment_dtype == "bfloat16":
            noise = torch.Generator().manual_seed(hash((c.seed, count, index)) % 2**62)
            bits = torch.empty(len(v), dtype=torch.int32).random_(generator=noise).tolist()
            m = [bfloat16(x) for x in m]
            v = [bfloat16(y, bit & 0xFFFF) for y, bit in zip(v, bits, strict=True)]
        self.moments[name] = count, m, v
        return moved


def schedule(c, step):
    """The factor of the learning rate in a step, counted from 0."""
    if step < c.warmup_steps:
        return (step + 1) / c.warmup_steps
    if c.schedule == "constant":
        return 1.0
    share = (step - c.warmup_steps) / (c.total_steps - c.warmup_steps)
    return max(0.0, 1 - share) if c.schedule == "linear" else (1 + math.cos(math.pi * min(share, 1.0))) / 2


def bfloat16(x, bits=None):
    """A float rounded to bfloat16: to nearest, ties to even. With 16 random ``bits``, stochastic rounding."""
    whole = struct.unpack("<I", struct.pack("<f", x))[0]
    whole += bits if bits is not None else 0x7FFF + (whole >> 16 & 1)
    return struct.unpack("<f", struct.pack("<I", whole & 0xFFFF0000))[0]
