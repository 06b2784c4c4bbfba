"""What the library knows about adapters (LoRA and the like), and how to copy a model without its frozen weights.

An adapter is anything with ``disable_adapter()``, a context in which the adapter does nothing. It may be a PEFT model,
or layers inside a model that have such a method each. This module does not know how adapters are made, merged or
stored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
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
    """Within the context every adapter of the model does nothing. A model without an adapter stays as it is.

    Afterwards the same weights are trained as before: PEFT's switch unfreezes the adapter that it switches on.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    switches = [model] if hasattr(model, "disable_adapter") else [*model.modules()]
    with ExitStack() as stack:
        stack.callback(_set_trained, trained)
        for module in switches:
            if hasattr(module, "disable_adapter"):
                stack.enter_context(cast(Any, module).disable_adapter())
        yield


def _set_trained(flags: Sequence[tuple[nn.Parameter, bool]]) -> None:
    for parameter, is_trained in flags:
        parameter.requires_grad_(is_trained)


@torch.no_grad()
def adapter_acts(model: nn.Module) -> bool:
    """Whether the adapter changes the logits of a few tokens; that of a new LoRA (B = 0) does not."""
    inner = causal_lm(model)
    ids = probe_ids(inner)
    with evaluation_mode(model):
        adapted = inner(input_ids=ids).logits
        with adapter_off(model):
            plain = inner(input_ids=ids).logits
    return not torch.equal(adapted, plain)


def base_is_trained(model: nn.Module) -> bool:
    """Whether a trained weight acts while the adapter is off: a bias beside it, an unfrozen norm or embedding.

    It is measured: the logits of a few tokens have a gradient then.
    """
    inner = causal_lm(model)
    with evaluation_mode(model), adapter_off(model), torch.enable_grad():
        return bool(inner(input_ids=probe_ids(inner)).logits.requires_grad)


def copy_trained(model: nn.Module) -> nn.Module:
    """A copy of the model: trained parameters are copied, frozen parameters are the same tensors in both."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen)
