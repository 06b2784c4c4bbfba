"""What the library knows of adapters (LoRA and the like), and how a model is copied without copying what is frozen.

An adapter is anything with ``disable_adapter()``, a context in which it does nothing: a PEFT model, or layers inside a
model that each have their own. How adapters are made, merged or stored is not known here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

from .backbone import causal_lm, evaluation_mode, probe_ids


def has_adapter(model: nn.Module) -> bool:
    """Whether the model is, or holds, an adapter."""
    return any(hasattr(module, "disable_adapter") for module in model.modules())


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The context in which a model with an adapter is its own base; a model without one is itself."""
    switches = [model] if hasattr(model, "disable_adapter") else [*model.modules()]
    with ExitStack() as stack:
        for module in switches:
            if hasattr(module, "disable_adapter"):
                stack.enter_context(cast(Any, module).disable_adapter())
        yield


@torch.no_grad()
def adapter_acts(model: nn.Module) -> bool:
    """Whether the adapter changes anything, measured on a few tokens: a new LoRA (B = 0) does not."""
    inner = causal_lm(model)
    ids = probe_ids(inner)
    with evaluation_mode(model):
        adapted = inner(input_ids=ids).logits
        with adapter_off(model):
            plain = inner(input_ids=ids).logits
    return not torch.equal(adapted, plain)


def copy_trained(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own where the model is trained; frozen parameters are the same tensors in both."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen)
