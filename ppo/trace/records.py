"""What a trace holds: a step, its minibatches, some of its responses, and of each token every number of the update.

Plain numbers and texts; :meth:`Trace.to_dict` is ready for JSON. This module computes nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

_DIGITS = 9  # what a float32 needs to come back as the same float32

ClipSide = Literal["", "above", "below"]
"""Which bound of the ratio cut the gradient: "above" for 1 + clip, "below" for 1 - clip, "" for neither."""

SkipReason = Literal["", "ratio", "not finite"]
"""Why a minibatch's gradient was thrown away: its mean ratio was beyond ``max_mean_ratio``, or something was NaN or
infinite; "" where it was used."""


@dataclass(frozen=True)
class Alternative:
    """A token that could stand in this place, with its probability under the policy before and after the update."""

    id: int
    text: str
    before: float
    after: float


@dataclass(frozen=True)
class TokenUpdate:
    """One token in one minibatch: once an epoch, unless the update ended early.

    ``minibatch``: index into ``Trace.minibatches``. ``surrogate`` = -advantage x ratio, ``clipped_surrogate`` the same
    with the ratio clipped, ``policy_loss`` the larger of the two; the losses here are not yet divided by the tokens of
    the minibatch. ``logprob_gradient`` is d loss / d log-prob as autograd found it, ``unclipped_gradient`` what the
    surrogate would have given without the clip; ``value_gradient`` is d loss / d value. ``clip_side``: which bound of
    the ratio cut the gradient, "above" or "below", "" for neither. What belongs to the critic is None where there is
    none.
    """

    minibatch: int
    logprob: float
    ratio: float
    surrogate: float
    clipped_surrogate: float
    policy_loss: float
    is_clipped: bool
    clip_side: ClipSide
    unclipped_gradient: float
    logprob_gradient: float
    new_value: float | None
    clipped_value: float | None
    value_loss: float | None
    is_value_clipped: bool
    value_gradient: float | None


@dataclass(frozen=True)
class TokenTrace:
    """One response token, from its draw to the end of the update. Log-probs in nats, of the distribution sampled from.

    ``token_reward`` is what the reward gave for this token (a score lands on the last one), scaled and clipped;
    ``shaped_reward`` after the KL penalty; ``reward`` after whitening, where that is on. ``td_error``,
    ``raw_advantage`` (before whitening), ``value`` and ``return_value`` are None without a critic; ``ref_logprob``
    without a reference. ``final_``: after the whole update. ``updates``: one for each minibatch that it was in.
    """

    id: int
    text: str
    old_logprob: float
    old_probability: float
    ref_logprob: float | None
    entropy: float
    kl: float
    token_reward: float
    shaped_reward: float
    reward: float
    value: float | None
    td_error: float | None
    raw_advantage: float | None
    advantage: float
    return_value: float | None
    final_logprob: float
    final_probability: float
    final_value: float | None
    alternatives: list[Alternative]
    updates: list[TokenUpdate]


@dataclass(frozen=True)
class MinibatchTrace:
    """One minibatch: its place in the update, its tokens, and the optimiser step that it led to.

    ``skip_reason``: why its gradient was thrown away ("ratio" or "not finite"), if it was; then ``grad_norm`` (before
    clipping) and ``learning_rate`` are None. ``statistics``: as in the step's metrics, for this one alone.
    """

    epoch: int
    index: int
    num_tokens: int
    skip_reason: SkipReason
    grad_norm: float | None
    learning_rate: float | None
    statistics: dict[str, float]

    @property
    def is_skipped(self) -> bool:
        """Whether its gradient was thrown away."""
        return self.skip_reason != ""


@dataclass(frozen=True)
class RowTrace:
    """One response: its place in the rollout, its prompt, its score, its tokens.

    ``pieces``: the prompt's tokens as texts. ``reward_total``: sum of the rewards. ``group_mean``, ``group_std``: of
    the totals of its prompt's samples, where advantages come from their comparison.
    """

    index: int
    prompt: str
    prompt_ids: list[int]
    pieces: list[str]
    response: str
    is_ended: bool
    score: float
    reward_total: float
    group_mean: float | None
    group_std: float | None
    tokens: list[TokenTrace]


@dataclass(frozen=True)
class Trace:
    """One PPO update seen from the inside; ``rows`` are those that were asked for.

    ``step``: PPO step, from 0. ``config``: :meth:`ppo.Config.to_dict`. ``numbers`` of the whole rollout: ``kl_coef``,
    ``score_std`` that rewards were divided by (with ``scale_scores``), and mean and variance (over all ``num_tokens``
    tokens) that whitening used. ``metrics``: what :meth:`ppo.Trainer.update` returns.
    """

    step: int
    num_rows: int
    config: dict[str, Any]
    numbers: dict[str, float]
    minibatches: list[MinibatchTrace]
    rows: list[RowTrace]
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers to nine significant digits, None for what is not finite."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
