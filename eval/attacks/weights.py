"""Attacks on the weights themselves, always on a copy: a little fine-tuning, and quantisation.

If unlearning moved the weights only a little, rounding them can bring the passages back (Zhang et al. 2025,
"Catastrophic Failure of LLM Unlearning via Quantization"). Fine-tuning on a few of the passages can bring back the
others (Hu et al. 2025, "Jogging the Memory of Unlearned LLMs").
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ppo.lm.backbone import Backbone, blocks

from ..baselines.training import Training, nll_of, pairs_of, train
from ..protocols import Passage
from .prompts import GREEDY, as_shown, attack_shown
from .result import AttackResult

TAUGHT_GROUP = "forget"


def relearning_attack(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    share: float = 0.25,
    steps: Sequence[int] = (5, 10, 20),
    learning_rate: float = 2e-4,
    batch: int = 8,
    autocast: Literal["off", "bfloat16"] = "off",
    seed: int = 0,
    slots: int = 64,
) -> list[AttackResult]:
    """Fine-tune a copy on ``share`` of the forget passages, and attack it greedily before training and at each step.

    The loss is the NLL of the suffix given the prefix. The attacks come at step 0 and at each of ``steps``. Every one
    gives two results: for the passages that were taught, and for all others in their groups. If taught passages come
    back, that means little, because any model learns them. If others come back, they were never gone. ValueError when
    the split would leave one side empty.
    """
    if not steps or min(steps) < 1:
        raise ValueError(f"steps={list(steps)} must name numbers of steps, each at least 1")
    forget = [p for p in passages if p.group == TAUGHT_GROUP]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(forget), generator=generator, device="cpu").tolist()
    taught = {forget[i].id for i in order[: count_taught(len(forget), share)]}
    pupil, results = copy.deepcopy(model), []
    if next(pupil.parameters()).dtype == torch.bfloat16:
        pupil.float()  # in bfloat16 the small steps of a plain Adam would vanish, and the attack with them

    def attack_after(step: int) -> bool:
        if step in (0, *steps):
            for part in ("taught", "not taught"):
                shown = [as_shown(p, tokenizer) for p in passages if (p.id in taught) == (part == "taught")]
                results.append(
                    attack_shown(pupil, tokenizer, shown, GREEDY, attack="relearning", variant=f"steps:{step}|{part}",
                                 sees="weights", slots=slots)
                )  # fmt: skip
        return False

    attack_after(0)
    pairs = pairs_of([p for p in passages if p.id in taught], "suffix")

    def loss(backbone: Backbone, indices: list[int]) -> Tensor:
        sizes = torch.tensor([len(pairs[i][1]) for i in indices], device="cpu")
        nll = nll_of(pairs, backbone, indices, training.chunk_tokens)
        return (nll / sizes.to(nll.device)).sum()

    training = Training(steps=max(steps), batch=batch, learning_rate=learning_rate, scope="suffix", autocast=autocast)
    train(pupil, len(pairs), (), loss, training=training, generator=generator, stop=attack_after)
    return results


def count_taught(num_forget: int, share: float) -> int:
    """How many passages relearning teaches. ValueError when none would be left to teach or to test."""
    count = round(share * num_forget)
    if not 0 < count < num_forget:
        raise ValueError(
            f"share={share} of {num_forget} passages in the group {TAUGHT_GROUP!r} leaves nothing to teach or to test"
        )
    return count


def quantisation_attack(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    bits: Sequence[int] = (8, 4),
    group: int | None = None,
    slots: int = 64,
) -> list[AttackResult]:
    """Greedy decoding of copies whose weights are rounded to ``bits`` bits. See :func:`quantised` for ``group``."""
    shown = [as_shown(p, tokenizer) for p in passages]
    scale = "row" if group is None else str(group)
    return [
        attack_shown(
            quantised(model, number, group=group),
            tokenizer,
            shown,
            GREEDY,
            attack="quantisation",
            variant=f"bits:{number}|scale:{scale}",
            sees="weights",
            slots=slots,
        )
        for number in bits
    ]


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
