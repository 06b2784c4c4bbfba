"""AdamW over the policy and the value function, with the learning-rate schedule and the two kinds of Adam epsilon.

This module knows parameters and step numbers, nothing about losses or data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import Config
from ..distributed.sharding import number, split_like, whole
from ..metrics import numbers
from .lean_adamw import STEP_DEVICE, LeanAdamW
from .saved import check_counts, check_moments


def schedule_factor(config: Config, step: int) -> float:
    """The factor of the learning rate in PPO step ``step`` (counted from 0).

    It rises linearly to 1 over ``warmup_steps``. Then it is constant, or falls to 0 at ``total_steps``.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant" or config.total_steps is None:
        return 1.0
    progress = min((step - config.warmup_steps) / (config.total_steps - config.warmup_steps), 1.0)
    return 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """AdamW with two groups, policy and value. ``parameters`` are given by name, ``value_names`` are the critic's."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], value_names: set[str], config: Config) -> None:
        if not parameters:
            raise ValueError("the model has no parameter with requires_grad=True: there is nothing to train")
        self._config = config
        self._parameters, self._value_names = dict(parameters), set(value_names)
        self._infinite = set(not_finite(parameters))  # a bias of -inf, say
        self.num_updates = 0
        policy = [p for name, p in parameters.items() if name not in value_names]
        value = [p for name, p in parameters.items() if name in value_names]
        value_rate = config.learning_rate if config.value_learning_rate is None else config.value_learning_rate
        groups = [
            {"params": policy, "lr": config.learning_rate, "base_lr": config.learning_rate},
            {"params": value, "lr": value_rate, "base_lr": value_rate},
        ]
        self._adam = _make_adam([group for group in groups if group["params"]], config)

    def step(self, ppo_step: int) -> tuple[float, float]:
        """Clip the gradients, move the weights, drop the gradients. Returns (gradient norm before clipping, lr).

        Raises FloatingPointError if the gradient norm is not finite. Then the weights are unchanged.
        """
        norm = self._clip_gradients()
        if not math.isfinite(norm):
            self.zero_grad()
            raise FloatingPointError(f"the gradient norm is {norm} in step {ppo_step}, update {self.num_updates}")
        self.num_updates += 1
        factor = schedule_factor(self._config, ppo_step)
        for group in self._adam.param_groups:
            group["lr"] = group["base_lr"] * factor
            if self._config.adam_eps_style == "tensorflow":
                # TensorFlow adds epsilon before the bias correction. This epsilon makes torch's formula equal to that.
                count = self._num_moves(group["params"]) + 1
                group["eps"] = self._config.adam_eps / math.sqrt(1 - self._config.adam_beta2**count)
        self._adam.step()
        self.zero_grad()
        return norm, float(self._adam.param_groups[0]["lr"])

    def _num_moves(self, parameters: list[nn.Parameter]) -> int:
        """How often a group has moved: the policy's less often than the critic's, if it waited for it."""
        states = (self._adam.state.get(parameter, {}) for parameter in parameters)
        return int(max(numbers(whole(state["step"]) for state in states if "step" in state), default=0))

    def zero_grad(self) -> None:
        """Drop the gradients that were accumulated."""
        self._adam.zero_grad()

    def _clip_gradients(self) -> float:
        limit = math.inf if self._config.max_grad_norm is None else self._config.max_grad_norm
        return number(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit))

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's moments and step counts, named ``<parameter>/<moment>``."""
        tensors = {}
        for name, parameter in self._parameters.items():
            for key, value in self._adam.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
        return tensors

    def first_broken(self) -> str | None:
        """The first trained weight, or moment, that holds NaN or an infinity; None if there is none.

        A weight that held an infinity from the start may still. Of split weights it is this process's part that counts.
        """
        weights = {name: weight for name, weight in self._parameters.items() if name not in self._infinite}
        moments = {name: value for name, value in self.state_tensors().items() if not name.endswith("/step")}
        return next(iter(not_finite(weights | moments)), None)

    def load_state_tensors(
        self, tensors: Mapping[str, Tensor], num_updates: int, *, num_waiting: int | None = None
    ) -> None:
        """Restore what :meth:`state_tensors` gave. A parameter that it does not name starts with empty moments.

        ``num_waiting``: in how many of the updates the policy waited for its critic; None: that is not known.

        Raises ValueError, before anything is changed, for a parameter that this model does not train, and for a moment
        or a step count that no update can have left.
        """
        moment_dtype = self._adam.moment_dtype if isinstance(self._adam, LeanAdamW) else None
        check_moments(tensors, self._parameters, moment_dtype)
        check_counts(tensors, self._parameters.keys() - self._value_names, num_updates, num_waiting)
        for state in self._adam.state.values():
            state.clear()
        is_lean = isinstance(self._adam, LeanAdamW)
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition("/")
            parameter = self._parameters[name]
            self._adam.state[parameter][key] = (
                value.clone().to(STEP_DEVICE if is_lean else parameter.device)
                if key == "step"
                else split_like(value.clone(), parameter)
            )
        self.num_updates = num_updates


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or an infinity, in their order. The device is waited for once."""
    local = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in local.items() if tensor.is_floating_point() and tensor.numel()}
    if not found:
        return []
    peaks = torch._foreach_norm(list(found.values()), ord=math.inf)
    is_finite = torch.stack([peak.float() for peak in peaks]).isfinite().tolist()
    return [name for name, fine in zip(found, is_finite, strict=True) if not fine]


def _make_adam(groups: list[dict[str, Any]], config: Config) -> torch.optim.AdamW | LeanAdamW:
    """LeanAdamW if weights or moments are bfloat16, else torch's fused AdamW, five times as fast as its loop."""
    dtypes = {parameter.dtype for group in groups for parameter in group["params"]}
    if torch.float16 in dtypes:
        raise ValueError("the model's weights are float16, in which steps vanish: load it in float32 or bfloat16")
    betas = (config.adam_beta1, config.adam_beta2)
    if torch.bfloat16 in dtypes or config.moment_dtype == "bfloat16":
        if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
            raise ValueError("sharding='fsdp' needs float32 weights and moments; take autocast for speed")
        return LeanAdamW(
            groups,
            betas=betas,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            moment_dtype=getattr(torch, config.moment_dtype),
            seed=config.seed,
        )
    return torch.optim.AdamW(groups, betas=betas, eps=config.adam_eps, weight_decay=config.weight_decay, fused=True)
