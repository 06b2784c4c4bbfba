# ruff: noqa: RUF001 (Greek letters are what is meant)
"""What a quantity of a trace is, and the signs of the formulas that are no quantities of a token.

A formula is written once, as Python with other quantities in braces: ``{reward} + {gamma} * {next_value} - {value}``.
From it :mod:`ppo.trace.formulas` makes the formula in symbols and the formula with a token's own numbers. This module
computes nothing, and knows no config.
"""

from __future__ import annotations

from dataclasses import dataclass

SECTIONS = {
    "state": "The state",
    "sample": "Sampled",
    "reward": "Rewarded",
    "advantage": "Judged: was it better than expected?",
    "policy": "The policy in this epoch",
    "value": "The critic in this epoch",
    "after": "After the update",
}


@dataclass(frozen=True)
class Quantity:
    """``says``: the meaning, in a sentence or two. ``code``: the function that makes the number. ``formula``: see the
    module; "" if the number is measured, not computed from others, or if nobody here knows how it is computed.
    ``is_share``: whether it lies between 0 and 1.
    """

    key: str
    label: str
    symbol: str
    section: str
    says: str
    code: str
    formula: str = ""
    is_share: bool = False


@dataclass(frozen=True)
class Symbol:
    """A sign in a formula that is no quantity of a token."""

    sign: str
    says: str


SYMBOLS = {
    "next_value": Symbol("Vₜ₊₁", "the value before the next token that the policy chose, 0 after the last"),
    "next_raw_advantage": Symbol("Aₜ₊₁", "the advantage of the next token that the policy chose, 0 after the last"),
    "next_return_value": Symbol("Rₜ₊₁", "the return of the next token that the policy chose, 0 after the last"),
    "gamma": Symbol("γ", "discount per token (gamma)"),
    "gae_lambda": Symbol("λ", "how much later TD errors count in GAE, 0 to 1 (gae_lambda)"),
    "policy_lambda": Symbol("λ_l", "λ of this response, 1 − 1/(αl) for l tokens, at least 0 (gae_length_alpha)"),
    "value_gae_lambda": Symbol("λ_V", "how much later TD errors count in the critic's returns (value_gae_lambda)"),
    "kl_coef": Symbol("β", "KL coefficient in this step (it starts at kl_coef)"),
    "policy_clip": Symbol("ε", "how far the ratio may go from 1 (policy_clip)"),
    "policy_clip_high": Symbol("ε_high", "how far the ratio may go above 1 (policy_clip_high)"),
    "policy_dual_clip": Symbol(
        "c_dual", "the ratio from which an advantage below 0 pushes no harder (policy_dual_clip)"
    ),
    "value_clip": Symbol("ε_V", "how far a value may move in a step (value_clip)"),
    "value_coef": Symbol("c_V", "weight of the value loss (value_coef)"),
    "num_tokens": Symbol("N", "number of tokens in the minibatch"),
    "minibatch": Symbol("M", "number of responses in the minibatch (minibatch)"),
    "num_actions": Symbol("|y|", "number of tokens of the response that the policy chose"),
    "response_length": Symbol("T", "most tokens of a response (response_length)"),
    "reward_mean": Symbol("mean(r)", "over all tokens of the step, before whitening"),
    "reward_variance": Symbol("var(r)", "over all tokens of the step, before whitening"),
    "advantage_mean": Symbol("mean(A)", "over all tokens of the step, before whitening"),
    "advantage_variance": Symbol("var(A)", "over all tokens of the step, before whitening"),
    "reward_total": Symbol("Σr", "sum of the rewards of the response"),
    "group_mean": Symbol("mean(Σr)", "over the responses to the same prompt"),
    "group_std": Symbol("std(Σr)", "over the responses to the same prompt"),
    "samples_per_prompt": Symbol("n", "number of responses to a prompt (samples_per_prompt)"),
    "score": Symbol("S", "score of the response"),
    "score_std": Symbol("σ_S", "standard deviation of all scores so far"),
    "clip_scores": Symbol("c_S", "bound to which scores are clipped (clip_scores)"),
    "missing_eos_penalty": Symbol("p_EOS", "penalty for a response that was cut off (missing_eos_penalty)"),
    "is_last": Symbol("lastₜ", "1 on the last token that the policy chose, 0 elsewhere"),
    "is_cut": Symbol("cut", "1 if the response was cut off before it ended, else 0"),
}
