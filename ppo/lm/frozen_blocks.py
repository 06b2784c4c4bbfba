"""Frozen blocks: the leading blocks of a model that training does not change. They run once per rollout.

If only the top of a model is trained (``Config.train_top_layers``, an adapter in the top blocks, parameters frozen by
hand), the blocks below give the same hidden states in every epoch, and in the reference. Their output is recorded once
and used again. This module replaces the forward of blocks for a while. It knows nothing about losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..buffer import align, microbatches
from ..types import Generation
from .adapters import has_adapter
from .backbone import Backbone, blocks, causal_lm, evaluation_mode, probe_ids, short_length, swapped_forwards


@dataclass(frozen=True)
class FrozenBlocks:
    """``depth``: the number of leading blocks that are frozen. ``width``: how many things a block of this family
    returns; None if it returns the hidden states bare, not in a tuple.
    """

    depth: int
    width: int | None

    @torch.no_grad()
    def record(self, backbone: Backbone, generation: Generation, *, batch_tokens: int) -> Tensor:
        """The frozen blocks' output for aligned rows: [B, S, H], arbitrary on padding. ``batch_tokens`` run at once."""
        result: Tensor | None = None
        last = blocks(backbone.model)[self.depth - 1]
        for indices in microbatches(generation.layout.attention_mask, tokens=batch_tokens):
            rows = align(generation.rows(indices))
            hidden = _output_of(last, lambda rows=rows: backbone(rows.input_ids, rows.attention_mask))
            if result is None:  # the longest rows come first
                result = hidden.new_zeros(len(generation), *hidden.shape[1:])
            result[indices, : hidden.shape[1]] = hidden
        if result is None:
            raise ValueError("the generation holds no sequence")
        return result

    @contextmanager
    def replayed(self, model: nn.Module, hidden: Tensor) -> Iterator[None]:
        """Within the context the frozen blocks of ``model`` (policy, critic, reference) only return ``hidden``.

        What else a block returns beside it is None: a state, say, or weights of attention.
        """
        frozen = blocks(causal_lm(model))[: self.depth]
        hidden = hidden.to(next(frozen[0].parameters()).dtype)
        result = hidden if self.width is None else (hidden, *[None] * (self.width - 1))
        with swapped_forwards(frozen, lambda _: lambda *_, **__: result):
            yield


def find_frozen_blocks(model: nn.Module) -> FrozenBlocks | None:
    """The frozen leading blocks of a model, or None. It is measured: on a probe their outputs require no gradient.

    A stack that is looped, or runs in another order than its list, has no leading blocks: the same block runs again on
    other states. Nor has one whose later blocks read more than the last hidden states, which the probe shows as well.
    """
    inner = causal_lm(model)
    if all(p.requires_grad for p in inner.parameters()) or short_length(inner) is not None:  # that one is called twice
        return None
    found = blocks(inner)
    probe, (logits, calls) = probe_ids(inner), _outputs_of_blocks(inner)
    trained = next((i for i, (_, output) in enumerate(calls) if _requires_gradient(output)), len(calls))
    again = next((i for i, (index, _) in enumerate(calls) if index != i), len(calls))
    is_again = {index for index, _ in calls[again:]}
    depth = next((i for i in range(min(trained, again)) if i in is_again), min(trained, again))
    if depth == 0 or any(p.requires_grad for block in found[:depth] for p in block.parameters()):
        return None
    output = calls[depth - 1][1]
    hidden = _hidden(output)
    if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape[:2] != probe.shape:
        return None
    frozen = FrozenBlocks(depth, len(output) if isinstance(output, tuple) else None)
    try:
        with torch.no_grad(), evaluation_mode(inner), frozen.replayed(inner, hidden):
            replayed = inner(input_ids=probe).logits
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a later block missed what the frozen ones had returned beside it; any error says so
        return None
    return frozen if torch.allclose(replayed, logits, rtol=1e-5, atol=1e-5) else None


def _outputs_of_blocks(inner: Any) -> tuple[Tensor, list[tuple[int, Any]]]:
    """The logits of a probe, and which block gave which output, in the order of the calls."""
    calls: list[tuple[int, Any]] = []
    hooks = [
        block.register_forward_hook(lambda *call, index=index: calls.append((index, call[-1])))
        for index, block in enumerate(blocks(inner))
    ]
    try:
        with evaluation_mode(inner), torch.enable_grad():
            logits: Tensor = inner(input_ids=probe_ids(inner)).logits.detach()
    finally:
        for hook in hooks:
            hook.remove()
    return logits, calls


def _requires_gradient(output: Any) -> bool:
    hidden = _hidden(output)
    return isinstance(hidden, Tensor) and hidden.requires_grad


def train_top(model: nn.Module, num_layers: int) -> None:
    """Freeze everything but the last ``num_layers`` blocks.

    Raises ValueError for a model with an adapter, and for more blocks than it has.
    """
    if has_adapter(model):
        raise ValueError(
            f"train_top_layers={num_layers} would train the weights under the adapter: adapt the top layers only"
        )
    found = blocks(causal_lm(model))
    if num_layers > len(found):
        raise ValueError(f"train_top_layers={num_layers}, but {type(model).__name__} has {len(found)} layers")
    model.requires_grad_(False)
    for block in found[len(found) - num_layers :]:
        block.requires_grad_(True)


class _Enough(Exception):
    """Ends a forward pass once the wanted output is there."""


def _output_of(block: nn.Module, run: Any) -> Tensor:
    """The hidden states that ``block`` returns while ``run`` is called. The blocks after it are not computed."""
    outputs: list[Any] = []

    def keep(*call: Any) -> None:
        outputs.append(call[-1])
        raise _Enough

    hook = block.register_forward_hook(keep)
    try:
        run()
    except _Enough:
        pass
    finally:
        hook.remove()
    return _hidden(outputs[0])


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
