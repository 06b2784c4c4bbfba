"""Distillation to the counterfactual reference: learn what the model would say if the true token were forbidden.

At every token of the true suffix the target is the original model's distribution with the true token masked out and the
rest renormalised, p(v) = q(v) / (1 - q(y*)). The loss is KL(p || model), mean over tokens. DeMem's KL term with
:class:`rewards.CounterfactualReference` pulls towards the same target; this method reaches for it without sampling. A
loss on retain text preserves the model's other knowledge.

With chance levels the target is the *bounded* counterfactual (:mod:`rewards.bounded`): the true token is taken down to
its chance level and not forbidden. These are the targets of ``demem.py --preset deep``, reached for without sampling.
``is_reverse`` turns the divergence round, to KL(model || target): that is the expectation of which PPO at forced states
takes samples. KL(target || model) asks the model to cover all that the target says; KL(model || target) punishes what
the target does not say.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ppo.lm.backbone import Backbone, end_ids
from rewards.bounded import bounded_logprobs

from ..protocols import Passage
from .tokenwise import token_loss
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
    is_reverse: bool = False,
) -> StepLog:
    """Distil the counterfactual of the given model into it. Changes ``model`` in place and returns the log.

    ``chances``: the chance level of every token of each passage, all of it; None: the true token is forbidden.
    ``is_reverse``: KL(model || target), with chances alone: to a forbidden token it is endless.
    """
    pairs = pairs_of(passages, training.scope)
    levels = None if chances is None else [c[-len(tokens) :] for c, (_, tokens) in zip(chances, pairs, strict=True)]
    original = Backbone(copy.deepcopy(model).requires_grad_(False).eval())

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        return distillation_loss(
            backbone, original, [pairs[i] for i in indices], chunk_tokens=training.chunk_tokens,
            chances=None if levels is None else [levels[i] for i in indices], is_reverse=is_reverse,
        )  # fmt: skip

    return train(model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop)


def distillation_loss(
    backbone: Backbone,
    original: Backbone,
    pairs: Sequence[Pair],
    *,
    chunk_tokens: int,
    chances: Sequence[Sequence[float]] | None = None,
    is_reverse: bool = False,
) -> Tensor:
    """Sum over passages of KL(counterfactual || model), mean over tokens, in nats; a differentiable scalar.

    ``chances``: the chance level of each token to forget, for the bounded counterfactual. ``is_reverse``: the
    divergence turned round; ValueError without chances.
    """
    if chances is None:
        if is_reverse:
            raise ValueError("KL(model || counterfactual) is endless where a token is forbidden: give chance levels")
        return token_loss(backbone, pairs, counterfactual_kl, chunk_tokens=chunk_tokens, frozen=original)
    per_token = partial(bounded_kl, end_ids=end_ids(original.model), is_reverse=is_reverse)
    return token_loss(backbone, pairs, per_token, chunk_tokens=chunk_tokens, frozen=original, beside=chances)


def counterfactual_kl(logits: Tensor, original_logits: Tensor, truths: Tensor) -> Tensor:
    """KL(p || model) [N], where p is the original distribution without the true token. Logits [N, V], truths [N]."""
    masked = original_logits.detach().scatter(-1, truths.unsqueeze(-1), -torch.inf)
    return kl_from(torch.log_softmax(masked, dim=-1), logits)


def bounded_kl(
    logits: Tensor,
    original_logits: Tensor,
    truths: Tensor,
    chances: Tensor,
    *,
    end_ids: Sequence[int],
    is_reverse: bool = False,
) -> Tensor:
    """KL(q || model) [N], where q is the bounded counterfactual (:func:`rewards.bounded.bounded_logprobs`).

    ``is_reverse``: KL(model || q).

    Logits [N, V], truths int64 [N], chances float32 [N].
    """
    target = bounded_logprobs(original_logits.detach(), truths, chances, end_ids=end_ids)
    if not is_reverse:
        return kl_from(target, logits)
    ours = torch.log_softmax(logits, dim=-1)
    return (ours.exp() * (ours - target.clamp(min=-1e4))).sum(dim=-1)


def kl_from(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || model) [N] from log-probs and logits, each [N, V], nats."""
    terms = target.exp() * (target.clamp(min=-1e4) - torch.log_softmax(logits, dim=-1))  # p log p is 0 where p is 0
    return terms.sum(dim=-1)
