"""UNDO: unlearn, noise, distil on outputs (Lee et al., NeurIPS 2025, "Distillation Robustifies Unlearning").

1. Unlearn: any method, until ``stop``. Here it is distillation to the counterfactual; the paper has gradient
   difference, maximum entropy and RMU.
2. Noise: every weight becomes (1 - alpha) w + alpha beta n. n is Xavier-uniform for a matrix and 0 for a vector, as in
   the authors' ``do_corruption``, whose beta is 0.1.
3. Distil: the noised model learns the unlearned one's distribution, KL(unlearned || student), on the passages and, with
   ``retain_weight``, on text to keep.

The paper distils until 95 % of the teacher's performance are back, over a large part of the text of pretraining. Here
the third phase takes ``distil_steps`` on the text at hand, so alpha has to be small.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ppo.lm.backbone import Backbone

from ..protocols import Passage
from . import distillation
from .tokenwise import FrozenRetain, token_loss
from .training import StepLog, Stop, Training, pairs_of, train

DEFAULT = Training(retain_weight=10.0, retain_loss="kl", learning_rate=1e-4)


def unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    alpha: float = 0.1,
    beta: float = 0.1,
    distil_steps: int = 60,
    stop: Stop | None = None,
) -> StepLog:
    """UNDO. Changes ``model``; returns the log of both trainings, one after the other, with ``phase`` 1 and 3.

    ``stop`` ends the first phase. ValueError unless alpha and beta lie in [0, 1] and there is text to keep.
    """
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        raise ValueError(f"alpha={alpha!r} and beta={beta!r} must lie in [0, 1]: shares of noise, and its size")
    if training.retain_weight == 0:
        raise ValueError("UNDO needs retain_weight > 0: text to keep is what mends the noised model")
    folder = training.checkpoint
    first = replace(training, checkpoint=folder and folder.with_name(folder.name + "-unlearn"))
    log = distillation.unlearn(model, passages, retain, generator=generator, training=first, stop=stop)
    teacher = copy.deepcopy(model).requires_grad_(False).eval()
    add_noise(model, alpha=alpha, beta=beta, generator=generator)
    more = _distil(model, teacher, passages, retain, replace(training, steps=distil_steps), generator)
    done, seconds = len(log), log[-1]["seconds"]
    later = [row | {"step": row["step"] + done, "seconds": row["seconds"] + seconds, "phase": 3.0} for row in more]
    return [row | {"phase": 1.0} for row in log] + later


@torch.no_grad()
def add_noise(model: nn.Module, *, alpha: float, beta: float, generator: torch.Generator) -> None:
    """Every weight w becomes (1 - alpha) w + alpha beta n, in place. ``generator`` (CPU) draws n."""
    for parameter in model.parameters():
        noise = torch.zeros(parameter.shape, dtype=torch.float32, device="cpu")
        if parameter.ndim >= 2:
            nn.init.xavier_uniform_(noise, generator=generator)
        parameter.copy_((1 - alpha) * parameter + alpha * beta * noise.to(parameter))


def kl_to_student(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(teacher || student) [N] in nats; logits [N, V]. ``labels`` play no part."""
    teacher, student = torch.log_softmax(teacher_logits.detach(), dim=-1), torch.log_softmax(logits, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def _distil(
    model: nn.Module,
    teacher: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    training: Training,
    generator: torch.Generator,
) -> StepLog:
    """The third phase: the teacher's distribution on the passages and on text to keep."""
    pairs, frozen = pairs_of(passages, training.scope), Backbone(teacher)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        chosen = [pairs[i] for i in indices]
        return token_loss(backbone, chosen, kl_to_student, chunk_tokens=training.chunk_tokens, frozen=frozen)

    kept = FrozenRetain(teacher, kl_to_student, chunk_tokens=training.chunk_tokens)
    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, retain_loss=kept)
