"""Whether a module computes what its class says, with its weights as they stand.

Hooks, parametrisations, pruning and replaced forwards make a module compute something else. Whoever reads weights, or
calls a part of a model in place of the whole, asks here first. This module knows no families of models.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import parametrize


def departure(module: nn.Module) -> str | None:
    """What makes a module depart from its class's forward on its own weights, in words; None where nothing does.

    Weight norm and pruning are forward hooks, which make the weight anew. FSDP2's hooks only gather weights.
    """
    if parametrize.is_parametrized(module):
        return "a parametrised weight"
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(not _gathers_weights(hook) for hook in hooks):
        return "a forward hook"
    if "forward" in vars(module):
        return "a forward of its own"
    return None


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was made; FSDP2 puts a class of its own before it."""
    kind = type(module)
    return kind.__mro__[2] if isinstance(module, FSDPModule) else kind


def _gathers_weights(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp")
