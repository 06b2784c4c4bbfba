"""The loop that every training-time baseline runs: a loss on forget passages, a loss on retain text, one optimiser.

The gradient is that of the whole batch, whatever the microbatch size. Dropout stays off, as in the reference code of
the methods. This module knows no method.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppo.checkpoint.loop import has_loop, restore_loop, save_loop
from ppo.generation.api import evaluation_mode
from ppo.lm.backbone import Backbone
from ppo.lm.precision import autocast
from ppo.retain import RetainLoss, RetainTexts
from rewards.fluency import sequence_nll

from ..protocols import Passage, whole

StepLog = list[dict[str, float]]
Pair = tuple[list[int], list[int]]
Scope = Literal["whole", "suffix"]
ForgetLoss = Callable[[Backbone, list[int]], Tensor]
"""Maps the backbone and indices of passages to the *sum* of their losses, a differentiable scalar."""
KeepLoss = Callable[..., Tensor]
"""Called as :class:`ppo.retain.RetainLoss` is: (backbone, ids, mask, num_tokens=…) → a differentiable scalar."""
Stop = Callable[[int], bool]
"""Is called after every step with the number of steps done. True ends the training."""


@dataclass(frozen=True)
class Training:
    """How a baseline is trained.

    steps              most optimiser steps
    batch              passages per step, in shuffled epochs; None: all of them in every step
    microbatch         passages in one forward pass
    learning_rate, beta1, beta2, max_grad_norm   Adam and gradient clipping (None: no clipping)
    scope              "suffix": forget the suffix given the prefix; "whole": every token of the passage but the first
    retain_weight      weight of the retain loss; 0 turns it off
    retain_loss        "lm": NLL of retain text; "kl": KL(original || model) at every token of retain text
    retain_sequences, retain_tokens   number of retain pieces per step, and their length
    chunk_tokens       tokens that pass the output layer at once
    autocast           "bfloat16": run the forward and backward pass in it; weights and Adam keep their dtype
    checkpoint         folder written every ``save_every_steps`` steps; if it holds a checkpoint, training resumes there
    """

    steps: int = 20
    batch: int | None = None
    microbatch: int = 16
    learning_rate: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.98
    max_grad_norm: float | None = 1.0
    scope: Scope = "suffix"
    retain_weight: float = 0.0
    retain_loss: Literal["lm", "kl"] = "lm"
    retain_sequences: int = 8
    retain_tokens: int = 128
    chunk_tokens: int = 512
    autocast: Literal["off", "bfloat16"] = "off"
    checkpoint: Path | None = None
    save_every_steps: int = 5

    def __post_init__(self) -> None:
        for name in ("steps", "microbatch", "save_every_steps", "retain_sequences", "retain_tokens", "chunk_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Training.{name}={getattr(self, name)!r} must be at least 1")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"Training.batch={self.batch!r} must be at least 1, or None for all passages")
        if self.learning_rate <= 0 or self.retain_weight < 0:
            raise ValueError(
                f"Training.learning_rate={self.learning_rate!r} must be above 0 and "
                f"Training.retain_weight={self.retain_weight!r} at least 0"
            )

    def precision(self, model: nn.Module) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        return autocast(self.autocast, next(model.parameters()).device)


def pairs_of(passages: Sequence[Passage], scope: Scope) -> list[Pair]:
    """(context, tokens to forget) of every passage."""
    if not passages:
        raise ValueError("there is nothing to unlearn: give at least one passage")
    if scope == "whole":
        return [(whole(p)[:1], whole(p)[1:]) for p in passages]
    return [(list(p.prefix), list(p.suffix)) for p in passages]


def nll_of(pairs: Sequence[Pair], backbone: Backbone, indices: Sequence[int], chunk_tokens: int) -> Tensor:
    """Summed NLL [B] of the tokens to forget, for the chosen passages."""
    return sequence_nll(backbone, [pairs[i] for i in indices], chunk_tokens=chunk_tokens)


@torch.no_grad()
def frozen_nll(model: nn.Module, pairs: Sequence[Pair], training: Training) -> Tensor:
    """Summed NLL [N] of the tokens to forget under the current model, for the methods that need a reference."""
    backbone = Backbone(model)
    with evaluation_mode(model), training.precision(model):
        parts = [nll_of(pairs, backbone, part, training.chunk_tokens) for part in _cut(range(len(pairs)), training)]
    return torch.cat(parts)


def train(
    model: nn.Module,
    num_passages: int,
    retain: Sequence[Sequence[int]],
    forget_loss: ForgetLoss,
    *,
    training: Training,
    generator: torch.Generator,
    stop: Stop | None = None,
    retain_loss: KeepLoss | None = None,
) -> StepLog:
    """Train ``model`` in place. Every row of the log has step, forget_loss, grad_norm and seconds.

    With ``retain_weight`` > 0 it also has retain_loss, and ``retain`` must hold token sequences. ``generator`` (CPU)
    decides every order and draw. ``retain_loss``: a method's own, in place of the one that ``training`` names.
    """
    backbone = Backbone(model)
    kept = _retain(model, retain, training, generator, retain_loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=training.learning_rate, betas=(training.beta1, training.beta2))
    order: list[int] = []
    log: StepLog = []
    if training.checkpoint is not None and has_loop(training.checkpoint):
        state = restore_loop(training.checkpoint, model, optimizer, generator)
        log, order = list(state["log"]), list(state["order"])
    started = time.perf_counter() - (log[-1]["seconds"] if log else 0.0)
    with evaluation_mode(model):
        for step in range(len(log), training.steps):
            size = num_passages if training.batch is None else min(training.batch, num_passages)
            if len(order) < size:
                order = torch.randperm(num_passages, generator=generator, device="cpu").tolist()
            chosen, order = order[:size], order[size:]
            optimizer.zero_grad(set_to_none=True)
            row = {"step": float(step), "forget_loss": _forget_gradients(backbone, chosen, forget_loss, training)}
            if kept is not None:
                row["retain_loss"] = _retain_gradients(backbone, *kept, training)
            limit = float("inf") if training.max_grad_norm is None else training.max_grad_norm
            row["grad_norm"] = float(nn.utils.clip_grad_norm_(parameters, limit))
            optimizer.step()
            log.append(row | {"seconds": time.perf_counter() - started})
            if stop is not None and stop(step + 1):
                break
            if training.checkpoint is not None and (step + 1) % training.save_every_steps == 0:
                save_loop(training.checkpoint, model, optimizer, generator, {"log": log, "order": order})
    return log


def _forget_gradients(backbone: Backbone, chosen: list[int], forget_loss: ForgetLoss, training: Training) -> float:
    total = 0.0
    for part in _cut(chosen, training):
        with training.precision(backbone.model):
            loss = forget_loss(backbone, part) / len(chosen)
        loss.backward()
        total += float(loss.detach())
    return total


def _retain_gradients(backbone: Backbone, retain_loss: KeepLoss, texts: RetainTexts, training: Training) -> float:
    batch = texts.draw(next(backbone.model.parameters()).device)
    with training.precision(backbone.model):
        loss = retain_loss(backbone, batch.ids, batch.mask, num_tokens=batch.num_predictions)
    (training.retain_weight * loss).backward()
    return float(loss.detach())


def _retain(
    model: nn.Module,
    retain: Sequence[Sequence[int]],
    training: Training,
    generator: torch.Generator,
    own: KeepLoss | None,
) -> tuple[KeepLoss, RetainTexts] | None:
    """The loss on text to keep and the texts, or None where no text is kept."""
    if training.retain_weight == 0:
        return None
    texts = RetainTexts(
        retain, num_sequences=training.retain_sequences, length=training.retain_tokens, generator=generator
    )
    if own is not None:
        return own, texts
    reference = copy.deepcopy(model).requires_grad_(False).eval() if training.retain_loss == "kl" else None
    return RetainLoss(training.retain_loss, reference=reference, chunk_tokens=training.chunk_tokens), texts


def _cut(indices: Sequence[int], training: Training) -> list[list[int]]:
    return [list(indices[i : i + training.microbatch]) for i in range(0, len(indices), training.microbatch)]
