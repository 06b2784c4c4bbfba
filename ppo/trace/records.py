"""What a trace holds: a step, its minibatches, some of its responses, and every number of the update for each token.

All of it is plain numbers and texts. :meth:`Trace.to_dict` is ready for JSON. This module computes nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .symbols import Quantity

_DIGITS = 9  # significant digits: a float32 that is written with nine is read back as the same float32

ClipSide = Literal["", "above", "below"]
"""Which bound of the ratio cut off the gradient: "above" for one above 1, "below" for 1 - clip, "" for neither."""

SkipReason = Literal["", "ratio", "not finite"]
"""Why a minibatch's gradient was thrown away. "ratio": its mean ratio was above ``max_mean_ratio``. "not finite":
something was NaN or infinite. "": it was used."""


@dataclass(frozen=True)
class Alternative:
    """A token that could stand at this position, with its probability under the policy before and after the update."""

    id: int
    text: str
    before: float
    after: float


@dataclass(frozen=True)
class TokenUpdate:
    """One token in one minibatch. A token is in one minibatch of every epoch, unless the update ended early.

    minibatch           index into ``Trace.minibatches``
    surrogate           -advantage x ratio
    clipped_surrogate   the same with the ratio clipped
    policy_loss         the larger of the two, or the bound of the dual clip where that is smaller
    clip_side           the bound of the ratio that cut off the gradient: "above", "below", or "" for neither
    unclipped_gradient  d loss / d log-prob without the clip
    logprob_gradient    d loss / d log-prob as autograd found it
    value_gradient      d loss / d value as autograd found it

    ``surrogate``, ``clipped_surrogate``, ``policy_loss`` and ``value_loss`` are not divided by the number of tokens of
    the minibatch; the gradients are, or by what ``loss_mean`` says. The critic's numbers are None without a critic.
    Under any policy loss but the config's "clip", ``surrogate``, ``clipped_surrogate``, ``policy_loss`` and
    ``unclipped_gradient`` are None, and ``is_clipped`` is False.
    """

    minibatch: int
    logprob: float
    ratio: float
    surrogate: float | None
    clipped_surrogate: float | None
    policy_loss: float | None
    is_clipped: bool
    clip_side: ClipSide
    unclipped_gradient: float | None
    logprob_gradient: float
    new_value: float | None
    clipped_value: float | None
    value_loss: float | None
    is_value_clipped: bool
    value_gradient: float | None


@dataclass(frozen=True)
class TokenTrace:
    """One response token, from its draw to the end of the update. Log-probs in nats, of the distribution sampled from.

    is_action      whether the policy chose this token; False: an environment wrote it
    state          at forced states: the index of its state in ``RowTrace.states``; else None
    draws          at forced states: the places in the response of all draws with these very numbers; else empty

    token_reward   what the reward gave for this token (the last action gets the score), scaled and clipped
    shaped_reward  the same after the KL penalty
    reward         the same after whitening, if that is on
    raw_advantage  before whitening
    final_…        after the whole update
    updates        one entry for each minibatch that the token was in

    Every number of a token that an environment wrote is None, and both of its lists are empty: nobody chose there, and
    no loss reads it. ``value``, ``td_error``, ``raw_advantage``, ``return_value`` and ``final_value`` are None without
    a critic, and ``ref_logprob`` is None without a reference. Under an estimator that is not the library's,
    ``td_error`` and ``raw_advantage`` are None, and ``advantage`` and ``return_value`` are what it returned.
    """

    id: int
    text: str
    old_logprob: float | None
    old_probability: float | None
    ref_logprob: float | None
    entropy: float | None
    kl: float | None
    token_reward: float | None
    shaped_reward: float | None
    reward: float | None
    value: float | None
    td_error: float | None
    raw_advantage: float | None
    advantage: float | None
    return_value: float | None
    final_logprob: float | None
    final_probability: float | None
    final_value: float | None
    alternatives: list[Alternative]
    updates: list[TokenUpdate]
    is_action: bool = True
    state: int | None = None
    draws: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class StateTrace:
    """A state of a text that was put into the context, and what was drawn there.

    id, text      the token that the state is about: the text's own, or the one that the caller of the trace named
    numbers       by name; ``text_p`` and ``final_text_p`` are the policy's probability of that token before and after
                  the update, without heat
    actions       which of ``RowTrace.tokens`` were drawn here, the one drawn most often first
    num_drawn     draws in all; tokens that were drawn seldom have no entry in ``actions``
    alternatives  the likeliest tokens before and after, with heat, as they are drawn
    """

    id: int
    text: str
    numbers: dict[str, float]
    actions: list[int]
    num_drawn: int
    alternatives: list[Alternative]


@dataclass(frozen=True)
class MinibatchTrace:
    """One minibatch: its place in the update, its tokens, and the optimiser step that it led to.

    ``grad_norm``: before clipping. ``skip_reason``: why the gradient was thrown away; if it was, ``grad_norm`` and
    ``learning_rate`` are None. ``statistics``: as in the step's metrics, but for this minibatch alone.
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
        """Whether the minibatch's gradient was thrown away."""
        return self.skip_reason != ""


@dataclass(frozen=True)
class RowTrace:
    """One response: its row in the rollout, its prompt, its score, its tokens.

    ``pieces``: the prompt's tokens as texts. ``num_actions``: tokens that the policy chose. ``reward_total``: the sum
    of the rewards of its tokens. ``group_mean``, ``group_std``: of these totals over all responses to the same prompt;
    None unless advantages compare them. ``policy_lambda``: lambda of its advantages; None unless it depends on the
    length. ``states``: at forced states; then ``tokens`` holds each action that was drawn at a state once, state by
    state, ``response`` is the text in the context, and ``remark`` is what the caller of the trace calls the row.
    """

    index: int
    prompt: str
    prompt_ids: list[int]
    pieces: list[str]
    response: str
    is_ended: bool
    score: float
    num_actions: int
    reward_total: float
    group_mean: float | None
    group_std: float | None
    tokens: list[TokenTrace]
    policy_lambda: float | None = None
    states: list[StateTrace] = field(default_factory=list)
    remark: str = ""

    @property
    def actions(self) -> list[int]:
        """The places of the tokens that the policy chose; every response has one."""
        return [t for t, token in enumerate(self.tokens) if token.is_action]

    @property
    def first_action(self) -> TokenTrace:
        """The first token that the policy chose. It has the numbers that every action of the trace has."""
        return self.tokens[self.actions[0]]

    def next_action(self, t: int) -> int | None:
        """The place of the first token after place ``t`` that the policy chose; None: there is none."""
        return next((place for place in range(t + 1, len(self.tokens)) if self.tokens[place].is_action), None)


@dataclass(frozen=True)
class Trace:
    """One PPO update seen from the inside. ``rows`` holds the responses that were asked for.

    ``step``: PPO step, from 0. ``config``: :meth:`ppo.Config.to_dict`. ``metrics``: what :meth:`ppo.Trainer.update`
    returns. ``numbers`` are those of the whole rollout: ``num_tokens`` (those that the policy chose), ``num_written``
    (those that an environment wrote, if there are any), ``kl_coef``, the ``score_std`` that scores were divided by
    (with ``scale_scores``), and the means and variances that whitening used. ``own_advantage``: the name of the
    estimator where it is not the library's; else "". ``told``: quantities that the caller of the trace described.
    """

    step: int
    num_rows: int
    config: dict[str, Any]
    numbers: dict[str, float]
    minibatches: list[MinibatchTrace]
    rows: list[RowTrace]
    metrics: dict[str, float]
    own_advantage: str = ""
    told: list[Quantity] = field(default_factory=list)

    @property
    def is_forced(self) -> bool:
        """Whether actions were drawn at forced states."""
        return bool(self.rows[0].states)

    @property
    def has_clip(self) -> bool:
        """Whether the policy loss is PPO's clipped surrogate, so that the tokens have its numbers."""
        updates = (update for row in self.rows for token in row.tokens for update in token.updates)
        return self.config["policy_loss"] == "clip" and all(update.surrogate is not None for update in updates)

    def to_dict(self) -> dict[str, Any]:
        """As a dict for JSON: numbers with nine significant digits, None for a number that is not finite."""
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
