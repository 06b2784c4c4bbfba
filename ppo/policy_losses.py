"""The losses of the policy: what each token costs, and the mean that is taken of the tokens.

:func:`policy_loss_of` joins the two for a config. Pure functions over [B, T] float32 tensors; what is off the action
mask counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .config import Config
from .types import Evaluation, PolicyLoss, Rollout

TokenLosses = Callable[[Tensor, Tensor, Tensor, Tensor], "tuple[Tensor, Tensor | None]"]
"""``(logprobs, old_logprobs, advantages, mask)``, each [B, T], to every token's loss and where a clip acts on it."""

LossMean = Callable[..., Tensor]
"""``(losses, mask, *, num_tokens, num_sequences)`` to a scalar: :func:`loss_mean` of a kind."""


def policy_loss_of(config: Config) -> PolicyLoss:
    """The policy loss that a config asks for: a loss for every token, and the mean that is taken of them."""
    low, high = config.policy_clip, config.policy_clip_up
    token_losses: TokenLosses = reinforce
    if config.policy_loss == "clip":
        token_losses = partial(clipped_surrogate, clip=low, clip_high=high, dual_clip=config.policy_dual_clip)
    elif config.policy_loss == "gspo":
        token_losses = partial(gspo, clip=low, clip_high=high)
    elif config.policy_loss == "cispo":
        token_losses = partial(cispo, clip=low, clip_high=high)
    return partial(mean_policy_loss, token_losses=token_losses, mean=loss_mean_of(config))


def mean_policy_loss(
    new: Evaluation, part: Rollout, *, token_losses: TokenLosses, mean: LossMean, num_tokens: int, num_sequences: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of the losses of a microbatch's tokens; a :data:`ppo.types.PolicyLoss`.

    Each token's loss is multiplied by its importance weight, where the rollout has them (:mod:`ppo.importance`).
    Statistic ``clip_fraction``: the share of ``num_tokens`` on which the clip acts, if the loss has one.
    """
    mask = part.generation.action_mask
    losses, is_clipped = token_losses(new.logprobs, part.old_logprobs, part.advantages, mask)
    if part.importance_weights is not None:
        losses = losses * part.importance_weights
    loss = mean(losses, mask, num_tokens=num_tokens, num_sequences=num_sequences)
    if is_clipped is None:
        return loss, {}
    return loss, {"clip_fraction": ((is_clipped * mask).sum() / num_tokens).detach()}


def loss_mean_of(config: Config) -> LossMean:
    """The mean over tokens that a config asks for."""
    return partial(loss_mean, kind=config.loss_mean, response_length=config.response_length)


def loss_mean(
    losses: Tensor,
    mask: Tensor,
    *,
    kind: Literal["tokens", "sequences", "sequence_sums", "constant"],
    response_length: int,
    num_tokens: int,
    num_sequences: int,
) -> Tensor:
    """A minibatch's mean of the tokens' losses [B, T], a scalar; means over its microbatches add up to it.

    ``num_tokens``, ``num_sequences``: of the whole minibatch. ``kind``: ``"tokens"``, all tokens weigh the same (DAPO,
    Yu et al. 2025, eq. 8); ``"sequences"``, the mean over responses of the mean over their tokens (GRPO, Shao et al.
    2024, eq. 3); ``"sequence_sums"``, the mean over responses of the sum over their tokens; ``"constant"``, this sum
    divided by ``response_length``, the length that no response exceeds (Dr. GRPO, Liu et al. 2025, section 3.2).
    """
    parts, count = parts_of_mean(
        losses, mask, kind=kind, response_length=response_length, num_tokens=num_tokens, num_sequences=num_sequences
    )
    return (parts * mask).sum() / count


def parts_of_mean(
    losses: Tensor,
    mask: Tensor,
    *,
    kind: Literal["tokens", "sequences", "sequence_sums", "constant"],
    response_length: int,
    num_tokens: int,
    num_sequences: int,
) -> tuple[Tensor, int]:
    """What each token brings into :func:`loss_mean`, [B, T], and what the sum of all of it is divided by."""
    if kind == "sequences":
        losses = losses / mask.sum(dim=1, keepdim=True).clamp(min=1)
    count = num_tokens if kind == "tokens" else num_sequences
    return losses, count * response_length if kind == "constant" else count


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float, num_tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate loss, a scalar (Schulman et al. 2017, eq. 7), and its statistic.

    ratio = exp(log pi - log pi_old);  loss = mean of max(-A * ratio, -A * clamp(ratio, 1 - clip, 1 + clip)).
    All tensors [B, T]. ``clip_fraction``: the share of ``num_tokens`` on which the clip cuts the gradient.
    """
    terms = policy_terms(logprobs, old_logprobs, advantages, mask, clip=clip, clip_high=clip)
    return (terms.loss * mask).sum() / num_tokens, {
        "clip_fraction": ((terms.is_cut * mask).sum() / num_tokens).detach()
    }


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """PPO's loss of every token, and where the clip cuts its gradient: :func:`policy_terms`."""
    terms = policy_terms(logprobs, old_logprobs, advantages, mask, clip=clip, clip_high=clip_high, dual_clip=dual_clip)
    return terms.loss, terms.is_cut


def gspo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """The loss of every token by the ratio of its whole response (GSPO, Zheng et al. 2025), and where it is cut.

    ratio = exp of the mean of log pi - log pi_old over the response's actions (eq. 7), clipped as in PPO. The gradient
    goes through the token's own log-prob (GSPO-token, eq. 13 and 14), so that advantages may differ within a response.
    Where they do not, this is GSPO's own objective (eq. 5), with the mean over ``"sequences"``. All tensors [B, T].
    """
    log_ratio = (logprobs - old_logprobs) * mask
    of_response = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    ratio = torch.exp(of_response.detach() + log_ratio - log_ratio.detach())
    terms = _clipped_terms(ratio, advantages, clip=clip, clip_high=clip_high)
    return terms.loss, terms.is_cut


def cispo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """REINFORCE weighted by the clipped ratio (CISPO, MiniMax 2025, eq. 4 and 5), and where the weight is clipped.

    loss = -A * clamp(ratio, 1 - clip, 1 + clip_high) * log pi, without a gradient through the weight. So every token
    keeps a gradient. ``clip`` of 1 or more: no lower bound, as in the paper. All tensors [B, T].
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask).detach()
    weight = torch.clamp(ratio, 1 - clip, 1 + clip_high)
    return -advantages * weight * logprobs, weight != ratio


def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, None]:
    """-A * log pi of every token (Williams 1992), [B, T]. No ratio: right as long as the policy has not moved."""
    return -advantages * logprobs, None


@dataclass(frozen=True)
class PolicyTerms:
    """The clipped surrogate token by token, each [B, T].

    A token's loss is the larger of ``plain`` and ``clipped``, but with a dual clip never more than ``most``.
    """

    ratio: Tensor
    plain: Tensor
    clipped: Tensor
    most: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """The loss of each token, before the mean over tokens."""
        larger = torch.maximum(self.plain, self.clipped)
        return larger if self.most is None else torch.minimum(larger, self.most)

    @property
    def is_cut(self) -> Tensor:
        """Tokens on which a clip cuts the gradient."""
        is_cut = self.clipped > self.plain
        return is_cut if self.most is None else is_cut | (self.plain > self.most)


def policy_terms(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyTerms:
    """Plain and clipped surrogate. PPO's loss is the mean of the larger one (Schulman et al. 2017, eq. 7). All [B, T].

    plain = -A * ratio;  clipped = -A * clamp(ratio, 1 - clip, 1 + clip_high). A ``clip_high`` above ``clip`` leaves
    unlikely tokens more room to grow (DAPO, Yu et al. 2025, eq. 10). ``dual_clip``: the loss of a token with A < 0 is
    at most -A * dual_clip, so that a huge ratio has no huge gradient (Ye et al. 2020, eq. 5). With A >= 0 the loss is
    never above 0, so that |A| * dual_clip bounds both.
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    return _clipped_terms(ratio, advantages, clip=clip, clip_high=clip_high, dual_clip=dual_clip)


def _clipped_terms(
    ratio: Tensor, advantages: Tensor, *, clip: float, clip_high: float, dual_clip: float | None = None
) -> PolicyTerms:
    clipped = -advantages * torch.clamp(ratio, 1 - clip, 1 + clip_high)
    return PolicyTerms(ratio, -advantages * ratio, clipped, None if dual_clip is None else advantages.abs() * dual_clip)
