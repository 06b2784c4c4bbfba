"""Rounding the weights of a copy: bfloat16, int8, int4.

If unlearning moved the weights only a little, rounding them can bring the passages back (Zhang et al. 2025,
"Catastrophic Failure of LLM Unlearning via Quantization").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ppo.lm.backbone import blocks

from ..protocols import Passage
from .prompts import GREEDY, as_shown, attack_shown
from .result import AttackResult, best_of


def quantisation_attack(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    bits: Sequence[int] = (8, 4),
    group: int | None = None,
    slots: int = 64,
) -> list[AttackResult]:
    """Greedy decoding of copies in float32, in bfloat16, and rounded to ``bits`` bits, and the worst of all of them.

    See :func:`quantised` for ``group``. The last result takes, for each passage, the best of all precisions: whoever
    holds the weights chooses.
    """
    shown = [as_shown(p, tokenizer) for p in passages]
    scale = "row" if group is None else str(group)
    copies: dict[str, Callable[[], nn.Module]] = {
        "float32": lambda: copy.deepcopy(model).float(),
        "bfloat16": lambda: copy.deepcopy(model).to(torch.bfloat16),
        **{f"bits:{number}|scale:{scale}": partial(quantised, model, number, group=group) for number in bits},
    }
    results = []
    for variant, make in copies.items():
        results.append(
            attack_shown(make(), tokenizer, shown, GREEDY, attack="quantisation", variant=variant, sees="weights",
                         slots=slots)
        )  # fmt: skip
    return [*results, best_of(results, attack="quantisation", variant="worst precision", sees="weights")]


@torch.no_grad()
def quantised(model: nn.Module, bits: int, *, group: int | None = None) -> nn.Module:
    """A copy whose linear layers inside the blocks are rounded to integers of ``bits`` bits times a scale.

    The dtype does not change. Embeddings and output layer are not rounded, as usual. ``group``: inputs that share
    one scale; None: one scale for each row.
    """
    copied = copy.deepcopy(model)
    for block in blocks(copied):
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(round_to_nearest(layer.weight, bits, group=group))
            elif isinstance(layer, Conv1D):  # GPT-2 stores the transposed weight, [in, out]
                layer.weight.copy_(round_to_nearest(layer.weight.T, bits, group=group).T)
    return copied


def round_to_nearest(weight: Tensor, bits: int, *, group: int | None = None) -> Tensor:
    """Symmetric round-to-nearest of a matrix [out, in]: s * round(w / s) with s = max |w| / (2^(bits-1) - 1).

    The maximum is over a row, or over ``group`` inputs of a row. Example with 2 bits: [0.9, -0.4, 0.1, 0.6] ->
    [0.9, 0, 0, 0.9].
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits} must lie between 2 and 16")
    rows, columns = weight.shape
    size = columns if group is None else group
    if size < 1 or columns % size:
        raise ValueError(f"group={group} must divide the {columns} inputs of every layer")
    parts = weight.float().reshape(rows, columns // size, size)
    scale = parts.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded = torch.where(scale > 0, (parts / scale).round() * scale, parts)
    return rounded.reshape(rows, columns).to(weight.dtype)
