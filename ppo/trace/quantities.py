# ruff: noqa: RUF001 (Greek letters are what is meant)
"""Every number of a trace: what it is called, what it means, where it is made, and how to work it out by hand.

A formula is written once, as Python with other quantities in braces: ``{reward} + {gamma} * {next_value} - {value}``;
:mod:`ppo.trace.formulas` makes of it the one in symbols and the one with a token's own numbers. This module is a table:
it computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config

SECTIONS = {
    "sample": "Sampled",
    "reward": "Rewarded",
    "advantage": "Judged: was it better than expected?",
    "policy": "The policy in this epoch",
    "value": "The critic in this epoch",
    "after": "After the update",
}


@dataclass(frozen=True)
class Quantity:
    """``formula``: see the module; "" for what is measured, not computed. ``code``: the place that makes the number."""

    key: str
    label: str
    symbol: str
    section: str
    says: str
    code: str
    formula: str = ""


@dataclass(frozen=True)
class Symbol:
    """What a formula mentions besides the quantities themselves."""

    sign: str
    says: str


SYMBOLS = {
    "next_value": Symbol("Vₜ₊₁", "the value before the next token, 0 after the last"),
    "next_raw_advantage": Symbol("Aₜ₊₁", "the advantage of the next token, 0 after the last"),
    "gamma": Symbol("γ", "discount a token (gamma)"),
    "gae_lambda": Symbol("λ", "how far GAE looks beyond the critic (gae_lambda)"),
    "kl_coef": Symbol("β", "KL coefficient of this step (kl_coef, adapted since)"),
    "policy_clip": Symbol("ε", "how far the ratio may go from 1 (policy_clip)"),
    "value_clip": Symbol("ε_V", "how far a value may go in a step (value_clip)"),
    "value_coef": Symbol("c_V", "weight of the value loss (value_coef)"),
    "num_tokens": Symbol("N", "tokens of the minibatch"),
    "reward_mean": Symbol("mean(r)", "over all tokens of the step, before whitening"),
    "reward_variance": Symbol("var(r)", "over all tokens of the step, before whitening"),
    "advantage_mean": Symbol("mean(A)", "over all tokens of the step, before whitening"),
    "advantage_variance": Symbol("var(A)", "over all tokens of the step, before whitening"),
    "reward_total": Symbol("Σr", "the rewards of the response together"),
    "group_mean": Symbol("mean(Σr)", "over the responses to the same prompt"),
    "group_std": Symbol("std(Σr)", "over the responses to the same prompt"),
    "samples_per_prompt": Symbol("n", "responses to a prompt (samples_per_prompt)"),
    "score": Symbol("S", "score of the response"),
    "score_std": Symbol("σ_S", "deviation of all that was given so far"),
    "clip_scores": Symbol("c_S", "where scores are clipped (clip_scores)"),
    "missing_eos_penalty": Symbol("p_EOS", "price of a response that was cut (missing_eos_penalty)"),
    "is_last": Symbol("lastₜ", "1 on the last token, 0 elsewhere"),
    "is_cut": Symbol("cut", "1 where the response was cut before its end, else 0"),
}

_KL = {
    "k1": "{old_logprob} - {ref_logprob}",
    "k2": "({old_logprob} - {ref_logprob})**2 / 2",
    "k3": "exp({ref_logprob} - {old_logprob}) - 1 - ({ref_logprob} - {old_logprob})",
}
_KL_SLOPE = {"k2": "({logprob} - {ref_logprob})", "k3": "(1 - exp({ref_logprob} - {logprob}))"}
_GROUP = {
    "grpo": "({reward_total} - {group_mean}) / ({group_std} + 1e-4)",
    "rloo": "({reward_total} - {group_mean}) * {samples_per_prompt} / ({samples_per_prompt} - 1)",
}


def quantities(config: Config, *, has_reference: bool, has_scores: bool) -> list[Quantity]:
    """All quantities that a step under ``config`` has, in the order in which they come about.

    ``has_scores``: whether the reward is one score a response, not a number for each token.
    """
    found = [*_sampled(config, has_reference), _given(config, has_scores), *_rewarded(config, has_reference)]
    found += _judged(config)
    found += _policy(config, has_reference)
    return [*found, *(_critic(config) if config.has_critic else []), *_after(config)]


def _sampled(config: Config, has_reference: bool) -> list[Quantity]:
    found = [
        Quantity("old_logprob", "log-prob, old policy", "log π_old", "sample",
                 "Natural logarithm of the chance that the sampler gave this token when it drew it.",
                 "ppo/policy.py: Policy.before"),
        Quantity("old_probability", "probability, old policy", "π_old", "sample",
                 "The same as a probability.", "ppo/policy.py: Policy.before", "exp({old_logprob})"),
        Quantity("entropy", "entropy", "H", "sample",
                 "How undecided the policy was here, in nats: 0 means that it had no choice.",
                 "ppo/generation/sampling.py: draw"),
    ]  # fmt: skip
    if has_reference:
        found += [
            Quantity("ref_logprob", "log-prob, reference", "log π_ref", "sample",
                     "What the reference gives the same token in the same place.", "ppo/reference.py: logprobs"),
            Quantity("kl", f"KL estimate ({config.kl_estimator})", "KLₜ", "sample",
                     "How far the policy has gone from its reference on this token, in nats. One token's estimate may "
                     "be negative; the mean over many is the KL divergence." if config.kl_estimator == "k1" else
                     "How far the policy has gone from its reference on this token, in nats.",
                     "ppo/kl.py: estimate_kl", _KL[config.kl_estimator]),
        ]  # fmt: skip
    return found


def _given(config: Config, has_scores: bool) -> Quantity:
    says, raw, formula = "What the reward function gave for this token", "the number", "{score}"
    if has_scores:
        says, raw = "The score S of the whole response lands on its last token: lastₜ is 1 there, 0 elsewhere", "S"
    if config.scale_scores:
        says += f"; {raw} is divided by σ_S, the deviation of all that was given so far"
        formula += " / {score_std}"
    if config.clip_scores is not None:
        says += f"; then held within ±{config.clip_scores:g}"
        formula = f"clip({formula}, -{{clip_scores}}, {{clip_scores}})"
    if config.missing_eos_penalty:
        says += f"; {config.missing_eos_penalty:g} is taken off the last token if the response was cut before its end"
        formula = f"({formula} - {{missing_eos_penalty}} * {{is_cut}})"
    is_lost = not has_scores and formula != "{score}"
    says += ". What the function gave before all that is not kept, so there is no formula." if is_lost else "."
    return Quantity("token_reward", "reward given", "sₜ", "reward", says, "ppo/scoring.py: Scorer.shape",
                    "{is_last} * " + formula if has_scores else "")  # fmt: skip


def _rewarded(config: Config, has_reference: bool) -> list[Quantity]:
    is_penalised = has_reference and config.kl_as == "reward"
    formula = "{token_reward} - {kl_coef} * {kl}" if is_penalised else "{token_reward}"
    says = "What the reward gave, minus the price β of leaving the reference." if is_penalised else (
        "What the reward gave: KL is not taken off the reward here.")  # fmt: skip
    name = "shaped_reward" if config.whiten_rewards else "reward"
    label, symbol = "reward after KL" if is_penalised else "reward", "rₜ⁰" if config.whiten_rewards else "rₜ"
    found = [
        Quantity(name, label, symbol, "reward", says, "ppo/advantages.py: shape_rewards", formula),
    ]  # fmt: skip
    if config.whiten_rewards:
        found.append(
            Quantity("reward", "reward, whitened", "rₜ", "reward",
                     "Scaled to variance 1 over all tokens of the step; the mean stays.", "ppo/advantages.py: whiten",
                     "({shaped_reward} - {reward_mean}) / sqrt({reward_variance} + 1e-8) + {reward_mean}")
        )  # fmt: skip
    return found


def _judged(config: Config) -> list[Quantity]:
    if not config.has_critic:
        return [
            Quantity("advantage", f"advantage ({config.advantage})", "Âₜ", "advantage",
                     "The response's total reward compared with the other responses to the same prompt; all of its "
                     "tokens share it.", "ppo/advantages.py: group_relative", _GROUP[config.advantage]),
        ]  # fmt: skip
    whitened = "({raw_advantage} - {advantage_mean}) / sqrt({advantage_variance} + 1e-8)"
    return [
        Quantity("value", "value", "Vₜ", "advantage",
                 "What the critic expected, before this token was chosen, of all rewards from here on.",
                 "ppo/actor_critic.py: ValueHead"),
        Quantity("td_error", "TD error", "δₜ", "advantage",
                 "What this one token brought beyond what was expected. After the last token nothing is expected: "
                 "Vₜ₊₁ is 0 there.", "ppo/advantages.py: td_errors", "{reward} + {gamma} * {next_value} - {value}"),
        Quantity("raw_advantage", "advantage", "Aₜ", "advantage",
                 "This TD error and, discounted by γλ a token, all that follow: credit for what the token led to.",
                 "ppo/advantages.py: gae", "{td_error} + {gamma} * {gae_lambda} * {next_raw_advantage}"),
        Quantity("return_value", "return", "Rₜ", "advantage",
                 "What the critic is trained to expect here.", "ppo/advantages.py: gae", "{raw_advantage} + {value}"),
        Quantity("advantage", "advantage, whitened" if config.whiten_advantages else "advantage used", "Âₜ",
                 "advantage",
                 "Mean 0 and variance 1 over all tokens of the step. Above 0 the token is to become likelier."
                 if config.whiten_advantages else "As it is: whitening is off.", "ppo/advantages.py: whiten",
                 whitened if config.whiten_advantages else "{raw_advantage}"),
    ]  # fmt: skip


def _policy(config: Config, has_reference: bool) -> list[Quantity]:
    slope = "-{advantage} * {ratio} * {gate} / {num_tokens}"
    extra = ""
    if config.kl_as == "loss" and has_reference:
        slope += f" + {{kl_coef}} * {_KL_SLOPE[config.kl_estimator]} / {{num_tokens}}"
        extra = " The KL loss pulls back to the reference, clip or no clip."
    if config.entropy_coef:
        extra += " The entropy bonus pulls at the whole distribution and is not in this number."
    return [
        Quantity("logprob", "log-prob, now", "log π", "policy",
                 "The same token under the policy as it is when this minibatch comes: earlier minibatches moved it.",
                 "ppo/lm/logprobs.py: token_logprobs"),
        Quantity("ratio", "ratio", "ρₜ", "policy",
                 "How much likelier the token has become since it was drawn; 1 before the first optimiser step.",
                 "ppo/losses.py: policy_terms", "exp({logprob} - {old_logprob})"),
        Quantity("surrogate", "loss without the clip", "Jₜ", "policy",
                 "Going down here makes good tokens likelier and bad ones less likely.", "ppo/losses.py: policy_terms",
                 "-{advantage} * {ratio}"),
        Quantity("clipped_surrogate", "loss with the ratio clipped", "Jₜᶜˡⁱᵖ", "policy",
                 "The same with the ratio held within 1 ± ε.", "ppo/losses.py: policy_terms",
                 "-{advantage} * clip({ratio}, 1 - {policy_clip}, 1 + {policy_clip})"),
        Quantity("policy_loss", "policy loss of this token", "Lₜ", "policy",
                 "The worse of the two: a token that has gone far enough gains nothing by going on.",
                 "ppo/losses.py: policy_loss", "max({surrogate}, {clipped_surrogate})"),
        Quantity("gate", "gate", "gₜ", "policy",
                 "1 where the gradient passes; 0 where the clipped loss is the larger one, which does not depend on "
                 "the policy.", "ppo/losses.py: PolicyTerms.is_cut", "1 if {surrogate} >= {clipped_surrogate} else 0"),
        Quantity("unclipped_gradient", "gradient without the clip", "∂Jₜ/N∂log π", "policy",
                 "What this token would pull with; N is the number of tokens in the minibatch.",
                 "ppo/trace/recorder.py: Recorder", "-{advantage} * {ratio} / {num_tokens}"),
        Quantity("logprob_gradient", "gradient", "∂loss/∂log π", "policy",
                 "What this token pulls with, as autograd found it: below 0 the optimiser makes the token likelier, "
                 "above 0 less likely, and 0 means that the clip cut it off." + extra, "torch.autograd", slope),
    ]  # fmt: skip


def _critic(config: Config) -> list[Quantity]:
    error, clipped = "({new_value} - {return_value})**2", "({clipped_value} - {return_value})**2"
    found = [
        Quantity("new_value", "value, now", "V", "value", "What the critic says now.", "ppo/actor_critic.py: ValueHead")
    ]
    if config.value_clip is not None:
        found.append(
            Quantity("clipped_value", "value, clipped", "Vᶜˡⁱᵖ", "value",
                     "Moved by no more than ε_V from what it was.", "ppo/losses.py: value_terms",
                     "{value} + clip({new_value} - {value}, -{value_clip}, {value_clip})")
        )  # fmt: skip
    return [
        *found,
        Quantity("value_loss", "value loss of this token", "Lₜⱽ", "value",
                 "Half the squared distance to the return" + (", of the two values the worse." if len(found) > 1
                 else "."), "ppo/losses.py: value_loss",
                 f"max({error}, {clipped}) / 2" if len(found) > 1 else f"{error} / 2"),
        Quantity("value_gate", "gate of the critic", "gₜⱽ", "value",
                 "1 where the gradient passes; 0 where the value has moved by more than ε_V and the clipped one is the "
                 "further from the return." if len(found) > 1 else "1: values are not clipped here.",
                 "ppo/losses.py: ValueTerms.is_cut"),
        Quantity("value_gradient", "gradient of the critic", "∂loss/∂V", "value",
                 "What this token pulls the critic with, as autograd found it: above 0 the value goes down.",
                 "torch.autograd", "{value_coef} * ({new_value} - {return_value}) * {value_gate} / {num_tokens}"),
    ]  # fmt: skip


def _after(config: Config) -> list[Quantity]:
    found = [
        Quantity("final_logprob", "log-prob, after", "log π_new", "after",
                 "The same token once all epochs are over.", "ppo/lm/logprobs.py: token_logprobs"),
        Quantity("final_probability", "probability, after", "π_new", "after",
                 "Compare it with the probability it was drawn with.", "ppo/lm/logprobs.py: token_logprobs",
                 "exp({final_logprob})"),
    ]  # fmt: skip
    if config.has_critic:
        found.append(
            Quantity("final_value", "value, after", "V_new", "after",
                     "What the critic expects here now; the return is what it was to learn.",
                     "ppo/actor_critic.py: ValueHead")
        )  # fmt: skip
    return found
