"""Distillation to the counterfactual reference: learn what the model would say if the true token were forbidden.

At every token of the true suffix the target is the original model's distribution with the true token masked out and the
rest renormalised, p(v) = q(v) / (1 - q(y*)). The loss is KL(p || model), mean over tokens. DeMem's KL term with
:class:`rewards.CounterfactualReference` pulls towards the same target; this method reaches for it without sampling. A
loss on retain text preserves the model's other knowledge.

With chance levels the target is the *bounded* counterfactual (:mod:`rewards.bounded`): the true token is taken down to
its chance level and not forbidden. These are the targets of ``demem.py --preset deep``, reached for without sampling.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppo.lm.backbone import Backbone, end_ids
from rewards.bounded import bounded_logprobs

from ..protocols import Passage
from .training import Pair, StepLog, Stop, Training, pairs_of, train

DEFAULT = Training(retain_weight=1.0, retain_loss="kl", learning_rate=1e-4)


def unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    training: Training = DEFAULT,
    stop: Stop | None = None,
    chances: Sequence[Sequence[float]] | None = None,
) -> StepLog:
    """Distil the counterfactual of the given model into it. Changes ``model`` in place and returns the log.

    ``chances``: the chance level of every token of each passage, all of it; None: the true token is forbidden.
    """
    pairs = pairs_of(passages, training.scope)
    levels = None if chances is None else [c[-len(tokens) :] for c, (_, tokens) in zip(chances, pairs, strict=True)]
    original = Backbone(copy.deepcopy(model).requires_grad_(False).eval())

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        return distillation_loss(
            backbone, original, [pairs[i] for i in indices], chunk_tokens=training.chunk_tokens,
            chances=None if levels is None else [levels[i] for i in indices],
        )  # fmt: skip

    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop)


def distillation_loss(
    backbone: Backbone,
    original: Backbone,
    pairs: Sequence[Pair],
    *,
    chunk_tokens: int,
    chances: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Sum over passages of KL(counterfactual || model), mean over tokens, in nats; a differentiable scalar.

    ``chances``: the chance level of each token to forget, for the bounded counterfactual.
    """
    device = next(backbone.model.parameters()).device
    rows = [[*context, *tokens] for context, tokens in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    place = torch.arange(width, device=device)
    mask = place < torch.tensor([[len(row)] for row in rows], device=device)
    is_scored = mask & (place >= torch.tensor([[len(context)] for context, _ in pairs], device=device))
    weights = (1 / is_scored.sum(dim=1, keepdim=True)).expand(is_scored.shape)[is_scored]
    truths, ends = ids[is_scored], end_ids(original.model)
    levels = torch.tensor([c for row in chances or [] for c in row], dtype=torch.float32, device=device)
    with torch.no_grad():
        targets = original(ids, mask).before_logits[:, :-1][is_scored[:, 1:]]
    states = backbone(ids, mask).before_logits[:, :-1][is_scored[:, 1:]]

    def one_chunk(states: Tensor, targets: Tensor, truths: Tensor, weights: Tensor, bounds: Tensor | None) -> Tensor:
        logits, plain = backbone.output_layer(states).float(), original.output_layer(targets).float()
        if bounds is None:
            return (counterfactual_kl(logits, plain, truths) * weights).sum()
        target = bounded_logprobs(plain.detach(), truths, bounds, end_ids=ends)
        return (kl_from(target, logits) * weights).sum()

    total = torch.zeros((), dtype=torch.float32, device=device)
    for start in range(0, len(truths), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        total = total + checkpoint(
            one_chunk, states[part], targets[part], truths[part], weights[part],
            None if chances is None else levels[part], use_reentrant=False,
        )  # fmt: skip
    return total


def counterfactual_kl(logits: Tensor, original_logits: Tensor, truths: Tensor) -> Tensor:
    """KL(p || model) [N], where p is the original distribution without the true token. Logits [N, V], truths [N]."""
    masked = original_logits.detach().scatter(-1, truths.unsqueeze(-1), -torch.inf)
    return kl_from(torch.log_softmax(masked, dim=-1), logits)


def kl_from(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || model) [N] from log-probs and logits, each [N, V], nats."""
    terms = target.exp() * (target.clamp(min=-1e4) - torch.log_softmax(logits, dim=-1))  # p log p is 0 where p is 0
    return terms.sum(dim=-1)
