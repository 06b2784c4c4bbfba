"""Whether a module computes what its class says, with its weights as they stand.

Hooks, parametrisations, pruning and replaced forwards make a module compute something else. Whoever reads weights, or
calls a part of a model in place of the whole, asks here first. This module knows no families of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules import module as of_all_modules
from torch.nn.utils import parametrize

_ONLY_LOOK_ON = ("torch.distributed.fsdp", "transformers.utils.output_capturing", "transformers.modeling_utils")
"""Where hooks come from that change no number. FSDP2's gather weights. A model of transformers that was once asked for
hidden states or attentions keeps hooks that note them, and ``enable_input_require_grads`` is a hook."""


def departure(module: nn.Module) -> str | None:
    """What makes a module depart from its class's forward on its own weights, in words; None where nothing does.

    Weight norm and pruning are forward hooks, which make the weight anew. A hook that torch calls for all modules is a
    hook of each.
    """
    if parametrize.is_parametrized(module):
        return "a parametrised weight"
    if forward_hooks(module):
        return "a forward hook"
    if of_all_modules._global_forward_hooks or of_all_modules._global_forward_pre_hooks:
        return "a forward hook, which torch calls for all modules"
    if has_own_forward(module):
        return "a forward of its own"
    return None


def forward_hooks(module: nn.Module) -> list[Any]:
    """The forward hooks of a module that may act on what it computes."""
    hooks: Iterable[Any] = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith(_ONLY_LOOK_ON)]


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module's forward is not its class's. transformers 5.0 leaves the class's own as an attribute."""
    forward = vars(module).get("forward")
    is_of_class = getattr(forward, "__func__", None) is type(module).forward
    return forward is not None and not (is_of_class and getattr(forward, "__self__", None) is module)


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was made; FSDP2 puts a class of its own before it."""
    kind = type(module)
    return kind.__mro__[2] if isinstance(module, FSDPModule) else kind
