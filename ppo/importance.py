"""Responses that another distribution drew: how much more likely the policy finds them than the sampler did.

An engine in another precision, with other kernels or with older weights draws from a distribution mu that is not quite
the policy pi. The training forward says pi_old of every token, the sampler says mu. The policy loss of a token is
multiplied by w = pi_old / mu, so that its gradient is again one under pi_old, and not one under mu.

    token     w of each token by itself. The gradient is that of a surrogate: the policy chooses one token, the sampler
              wrote all before it and writes all after it. Its variance is small, and it has a bias.
    sequence  the product of w over the actions of a response, for each of its tokens. Without a cap this is the
              gradient under pi_old. The variance grows with the length.

Pure functions over [B, T]; nothing here knows models or losses. Sources: Yao et al. 2025, "Your efficient RL framework
secretly brings you off-policy RL training" (truncated); Liu et al. 2025, "When speed kills stability" (per sequence,
masked); the truncation is that of V-trace (Espeholt et al. 2018, section 4.1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .advantages import masked_mean
from .lm.precision import as_float64

Level = Literal["token", "sequence"]


@torch.no_grad()
def importance_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Level,
    cap: float | None = None,
    beyond: Literal["truncate", "mask"] = "truncate",
) -> Tensor:
    """What the policy loss of each token is multiplied by, [B, T], 0 off the action mask; without a gradient.

    ``old_logprobs``: of the training forward, ``sampler_logprobs``: of the distribution that the tokens were drawn
    from; nats, [B, T]. ``mask`` bool [B, T]: the actions. A ratio above ``cap`` becomes ``cap`` (``"truncate"``) or 0
    (``"mask"``); None: no cap.

    Example: log-ratios log 2 and log 3 with cap 4 give the weights 2 and 3 per token, per sequence 4 and 4.
    """
    ratios = importance_ratios(old_logprobs, sampler_logprobs, mask, level=level)
    if cap is not None:
        ratios = ratios.clamp(max=cap) if beyond == "truncate" else ratios.masked_fill(ratios > cap, 0.0)
    return (ratios * mask.to(ratios.device)).to(old_logprobs)


@torch.no_grad()
def importance_ratios(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, level: Level) -> Tensor:
    """pi_old / mu of each token or of each whole response, float64 [B, T], 1 off the action mask."""
    log_ratio = as_float64(old_logprobs) - as_float64(sampler_logprobs)
    mask = mask.to(log_ratio.device)
    log_ratio = torch.where(mask, log_ratio, 0.0)
    if level == "sequence":
        log_ratio = torch.where(mask, log_ratio.sum(dim=1, keepdim=True), 0.0)
    return log_ratio.exp()


def importance_metrics(
    weights: Tensor, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, level: Level, cap: float | None
) -> dict[str, float]:
    """``importance/mean``: the mean weight; ``importance/cut_share``: the share of ratios above the cap.

    Both are over tokens, or over responses where ``level`` is ``"sequence"``.
    """
    ratios = importance_ratios(old_logprobs, sampler_logprobs, mask, level=level)
    weights, mask = as_float64(weights), mask.to(ratios.device)
    is_cut = torch.zeros_like(mask) if cap is None else ratios > cap
    if level == "sequence":
        lengths = mask.sum(dim=1)
        mean, cut = ((x * mask).sum(dim=1) / lengths for x in (weights, is_cut.double()))
        return {"importance/mean": float(mean.mean()), "importance/cut_share": float(cut.mean())}
    return {
        "importance/mean": float(masked_mean(weights, mask)),
        "importance/cut_share": float(masked_mean(is_cut.double(), mask)),
    }


@torch.no_grad()
def sampler_metrics(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """How far the sampler's distribution is from that of the training forward, by the tokens that it drew.

    ``sampler/k3``: the k3 estimate of KL(sampler || training), nats per token (Schulman 2020); ``sampler/ratio_max``,
    ``sampler/ratio_min``: of the tokens' training / sampler probabilities. All tensors [B, T].
    """
    log_ratio = (as_float64(old_logprobs) - as_float64(sampler_logprobs))[mask.to(as_float64(old_logprobs).device)]
    ratio = log_ratio.exp()
    return {
        "sampler/k3": float((ratio - 1 - log_ratio).mean()),
        "sampler/ratio_max": float(ratio.max()),
        "sampler/ratio_min": float(ratio.min()),
    }
