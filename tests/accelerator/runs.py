"""Two PPO steps on the CPU and on the pretend device, and what they came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppo import Config, Trainer
from ppo.types import Rollout

PROMPTS = [[5, 6, 7], [8], [9, 10]]
SMALL = Config(prompts_per_step=4, minibatch=2, response_length=6, epochs=2)
_CLOCK = ("time/", "seconds", "_per_second")  # in the names of what differs from run to run

Make = Callable[[torch.device], Trainer]
"""Makes a trainer whose model is on a device."""


def cases(names: Iterable[str], *quick: str) -> list[Any]:
    """Names as parameters of a test; all but the ``quick`` ones are slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def length_of(samples: Any) -> list[float]:
    return [float(len(sample.ids)) + 0.1 * sample.ids[0] for sample in samples]


def trainer(model: Any, device: torch.device, changes: Mapping[str, Any], **arguments: Any) -> Trainer:
    config = SMALL.replace(**changes)
    return Trainer(model.to(device), PROMPTS, length_of, config, **arguments)


def two_steps(run: Trainer) -> dict[str, Tensor | float]:
    """All numbers of two steps, and the weights behind them, on the CPU."""
    found: dict[str, Tensor | float] = {}
    # Attention by its formula: the CPU's fused one rounds otherwise.
    with sdpa_kernel(SDPBackend.MATH):
        for step in range(2):
            rollout = run.rollout()
            found |= {f"{step}/{name}": x for name, x in numbers_of(rollout).items()}
            found |= {f"{step}/{name}": x for name, x in run.update(rollout).items()}
    return found | {name: p.detach().cpu() for name, p in run.policy.actor.named_parameters()}


def is_clock(name: str) -> bool:
    """Whether a metric is a time, or made of one."""
    return any(part in name for part in _CLOCK)


def numbers_of(rollout: Rollout) -> dict[str, Tensor | float]:
    tensors = {name: x.cpu() for name, x in vars(rollout).items() if isinstance(x, Tensor)}
    drawn = {name: x.cpu() for name, x in vars(rollout.generation).items() if isinstance(x, Tensor)}
    return {**tensors, **drawn, **rollout.metrics}


def assert_same(found: Mapping[str, Tensor | float], expected: Mapping[str, Tensor | float], tolerance: float) -> None:
    """Whole numbers are equal, others differ by ``tolerance``, absolute or relative. Times are left out."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if is_clock(name):
            continue
        torch.testing.assert_close(
            found[name], x, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_both_devices_agree(make: Make, device: torch.device, *, tolerance: float = 2e-6) -> Trainer:
    """Two steps of a run give the same on the CPU and on the device; returns the run on the device."""
    there = make(device)
    found = two_steps(there)
    assert_same(found, two_steps(make(torch.device("cpu"))), tolerance)
    return there
