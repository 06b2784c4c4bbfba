# ruff: noqa: RUF001 (Greek letters are what is meant)
"""Every number of a trace: its name, its meaning, the function that makes it, and the formula to compute it by hand.

A formula is written once, as Python with other quantities in braces: ``{reward} + {gamma} * {next_value} - {value}``.
From it :mod:`ppo.trace.formulas` makes the formula in symbols and the formula with a token's own numbers. This module
is a table. It computes nothing.
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
    """``says``: the meaning, in a sentence or two. ``code``: the function that makes the number. ``formula``: see the
    module; "" if the number is measured, not computed from others.
    """

    key: str
    label: str
    symbol: str
    section: str
    says: str
    code: str
    formula: str = ""


@dataclass(frozen=True)
class Symbol:
    """A sign in a formula that is no quantity of a token."""

    sign: str
    says: str


SYMBOLS = {
    "next_value": Symbol("Vₜ₊₁", "the value before the next token, 0 after the last"),
    "next_raw_advantage": Symbol("Aₜ₊₁", "the advantage of the next token, 0 after the last"),
    "next_return_value": Symbol("Rₜ₊₁", "the return of the next token, 0 after the last"),
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
    "is_last": Symbol("lastₜ", "1 on the last token, 0 elsewhere"),
    "is_cut": Symbol("cut", "1 if the response was cut off before it ended, else 0"),
}

_KL = {
    "k1": "{old_logprob} - {ref_logprob}",
    "k2": "({old_logprob} - {ref_logprob})**2 / 2",
    "k3": "exp({ref_logprob} - {old_logprob}) - 1 - ({ref_logprob} - {old_logprob})",
}
_KL_SLOPE = {"k2": "({logprob} - {ref_logprob})", "k3": "(1 - exp({ref_logprob} - {logprob}))"}
_DIVISOR = {
    "tokens": "{num_tokens}",
    "sequences": "({minibatch} * {num_actions})",
    "sequence_sums": "{minibatch}",
    "constant": "({minibatch} * {response_length})",
}
_GROUP = {
    "grpo": "({reward_total} - {group_mean}) / ({group_std} + 1e-4)",
    "dr_grpo": "{reward_total} - {group_mean}",
    "rloo": "({reward_total} - {group_mean}) * {samples_per_prompt} / ({samples_per_prompt} - 1)",
    "reinforce++": "({reward_total} - {advantage_mean}) / sqrt({advantage_variance} + 1e-8)",
    "reinforce++_baseline": "({reward_total} - {group_mean} - {advantage_mean}) / sqrt({advantage_variance} + 1e-8)",
}


def quantities(config: Config, *, has_reference: bool, has_scores: bool, has_clip: bool) -> list[Quantity]:
    """All quantities that a step under ``config`` has, in the order in which the step makes them.

    ``has_scores``: whether the reward is one score per response and not a number for each token. ``has_clip``: whether
    the policy loss is the clipped surrogate.
    """
    found = [*_sampled(config, has_reference), _given(config, has_scores), *_rewarded(config, has_reference)]
    found += _judged(config)
    found += _policy(config, has_reference, has_clip)
    return [*found, *(_critic(config) if config.has_critic else []), *_after(config)]


def _sampled(config: Config, has_reference: bool) -> list[Quantity]:
    found = [
        Quantity("old_logprob", "log-prob, old policy", "log π_old", "sample",
                 "The natural logarithm of the probability that the policy gave this token when it was drawn.",
                 "ppo/policy.py: Policy.old_statistics"),
        Quantity("old_probability", "probability, old policy", "π_old", "sample",
                 "The probability that the policy gave this token when it was drawn.",
                 "ppo/policy.py: Policy.old_statistics", "exp({old_logprob})"),
        Quantity("entropy", "entropy", "H", "sample",
                 "How undecided the policy was here: the entropy, in nats, of the distribution that the token was "
                 "drawn from. 0 means that only one token was possible.", "ppo/generation/sampling.py: draw"),
    ]  # fmt: skip
    if has_reference:
        found += [
            Quantity("ref_logprob", "log-prob, reference", "log π_ref", "sample",
                     "The log-probability of the same token in the same place under the reference model.",
                     "ppo/reference.py: logprobs"),
            Quantity("kl", f"KL estimate ({config.kl_estimator})", "KLₜ", "sample",
                     "An estimate, from this token, of how far the policy has moved from the reference, in nats."
                     + (" One token's estimate may be negative. The mean over many drawn tokens comes close to the KL "
                        "divergence." if config.kl_estimator == "k1" else ""),
                     "ppo/kl.py: estimate_kl", _KL[config.kl_estimator]),
        ]  # fmt: skip
    return found


def _given(config: Config, has_scores: bool) -> Quantity:
    says, formula = "The number that the reward function gave for this token.", "{score}"
    if has_scores:
        says = "The last token of a response gets the response's score S (lastₜ is 1 there, 0 elsewhere)."
    name, plural = ("S", "scores") if has_scores else ("The number", "numbers")
    if config.scale_scores:
        says += f" {name} is divided by σ_S, the standard deviation of all {plural} so far."
        formula += " / {score_std}"
    if config.clip_scores is not None:
        says += f" The result is clipped to ±{config.clip_scores:g}."
        formula = f"clip({formula}, -{{clip_scores}}, {{clip_scores}})"
    if config.missing_eos_penalty:
        says += f" A response that was cut off before it ended loses {config.missing_eos_penalty:g} on its last token."
        formula = f"({formula} - {{missing_eos_penalty}} * {{is_cut}})"
    if not has_scores and formula != "{score}":
        says += " The function's own number is not kept, so there is no formula."
    return Quantity("token_reward", "reward given", "sₜ", "reward", says, "ppo/scoring.py: Scorer.shape",
                    "{is_last} * " + formula if has_scores else "")  # fmt: skip


def _rewarded(config: Config, has_reference: bool) -> list[Quantity]:
    is_penalised = has_reference and config.kl_as == "reward"
    formula = "{token_reward} - {kl_coef} * {kl}" if is_penalised else "{token_reward}"
    says = "The reward given, minus β times the KL estimate: the price of moving away from the reference."
    if not is_penalised:
        says = "The reward given. KL is not subtracted from the reward here."
    name = "shaped_reward" if config.whiten_rewards else "reward"
    label, symbol = "reward after KL" if is_penalised else "reward", "rₜ⁰" if config.whiten_rewards else "rₜ"
    found = [
        Quantity(name, label, symbol, "reward", says, "ppo/advantages.py: shape_rewards", formula),
    ]  # fmt: skip
    if config.whiten_rewards:
        found.append(
            Quantity("reward", "reward, whitened", "rₜ", "reward",
                     "The reward scaled to variance 1 over all tokens of the step. The mean stays as it was.",
                     "ppo/advantages.py: whiten",
                     "({shaped_reward} - {reward_mean}) / sqrt({reward_variance} + 1e-8) + {reward_mean}")
        )  # fmt: skip
    return found


def _judged(config: Config) -> list[Quantity]:
    if not config.has_critic:
        others = "the responses to the same prompt" if config.compares_samples else "all responses of the step"
        is_whitened = config.advantage.startswith("reinforce++")
        whitening = " It is scaled to mean 0 and variance 1 over all tokens of the step." if is_whitened else ""
        return [
            Quantity("advantage", f"advantage ({config.advantage})", "Âₜ", "advantage",
                     f"The total reward of this response compared with {others}.{whitening} All tokens of "
                     "the response have the same advantage.",
                     f"ppo/advantages.py: {'reinforce_plus_plus' if is_whitened else 'group_relative'}",
                     _GROUP[config.advantage]),
        ]  # fmt: skip
    lam = "{gae_lambda}" if config.gae_length_alpha is None else "{policy_lambda}"
    critic = "{gae_lambda}" if config.value_gae_lambda is None else "{value_gae_lambda}"
    mixed = f"{{reward}} + {{gamma}} * ((1 - {critic}) * {{next_value}} + {critic} * {{next_return_value}})"
    whitened = "({raw_advantage} - {advantage_mean}) / sqrt({advantage_variance} + 1e-8)"
    return [
        Quantity("value", "value", "Vₜ", "advantage",
                 "The sum of all rewards from this token on, discounted by γ per token, as the critic expected it "
                 "before this token was chosen.", "ppo/actor_critic.py: ValueHead"),
        Quantity("td_error", "TD error", "δₜ", "advantage",
                 "How much better this one step was than the critic expected. After the last token no reward is "
                 "expected, so Vₜ₊₁ is 0 there.", "ppo/advantages.py: td_errors",
                 "{reward} + {gamma} * {next_value} - {value}"),
        Quantity("raw_advantage", "advantage", "Aₜ", "advantage",
                 "The TD error of this token, plus those of all later tokens, each discounted by γλ per token in "
                 "between. So a token gets credit for what it led to.",
                 "ppo/advantages.py: gae", f"{{td_error}} + {{gamma}} * {lam} * {{next_raw_advantage}}"),
        Quantity("return_value", "return", "Rₜ", "advantage",
                 "The value that the critic is trained to predict here.", "ppo/advantages.py: gae",
                 "{raw_advantage} + {value}" if lam == critic else mixed),
        Quantity("advantage", "advantage, whitened" if config.whiten_advantages else "advantage used", "Âₜ",
                 "advantage",
                 ("The advantage shifted and scaled to mean 0 and variance 1 over all tokens of the step."
                  if config.whiten_advantages else "The advantage as it is, because whitening is off.")
                 + " Above 0, the update makes the token likelier; below 0, less likely.", "ppo/advantages.py: whiten",
                 whitened if config.whiten_advantages else "{raw_advantage}"),
    ]  # fmt: skip


def _policy(config: Config, has_reference: bool, has_clip: bool) -> list[Quantity]:
    divisor, slope, extra = _DIVISOR[config.loss_mean], "", ""
    if has_clip:
        slope, extra = f"-{{advantage}} * {{ratio}} * {{gate}} / {divisor}", " It is 0 where the clip cuts it off."
    if has_clip and config.kl_as == "loss" and has_reference:
        slope += f" + {{kl_coef}} * {_KL_SLOPE[config.kl_estimator]} / {divisor}"
        extra = " Where the clip cuts off the part of the policy loss, the part of the KL loss remains: it pulls the "
        extra += "policy back to the reference."
    if config.entropy_coef:
        extra += " The entropy bonus acts on the whole distribution and is not in this number."
    return [
        Quantity("logprob", "log-prob, now", "log π", "policy",
                 "The log-probability of the same token under the policy at this minibatch. Earlier minibatches have "
                 "changed it.", "ppo/lm/logprobs.py: token_logprobs"),
        Quantity("ratio", "ratio", "ρₜ", "policy",
                 "The token's probability now, divided by its probability when it was drawn. It is 1 before the first "
                 "optimiser step.", "ppo/policy_losses.py: policy_terms", "exp({logprob} - {old_logprob})"),
        *(_clip(config, divisor) if has_clip else []),
        Quantity("logprob_gradient", "gradient", "∂loss/∂log π", "policy",
                 "The gradient of the minibatch's loss with respect to the token's log-probability, as autograd found "
                 "it. Below 0, the optimiser makes the token likelier; above 0, less likely." + extra,
                 "torch.autograd", slope),
    ]  # fmt: skip


def _clip(config: Config, divisor: str) -> list[Quantity]:
    """PPO's own loss; other policy losses have none of this."""
    high, bounds = "{policy_clip}", "1 ± ε"
    if config.policy_clip_high is not None:
        high, bounds = "{policy_clip_high}", "between 1 − ε and 1 + ε_high"
    loss, gate, most = "max({surrogate}, {clipped_surrogate})", "{surrogate} >= {clipped_surrogate}", ""
    if config.policy_dual_clip is not None:
        bound = "abs({advantage}) * {policy_dual_clip}"
        loss, gate = f"min({loss}, {bound})", f"{bound} >= {gate}"
        most = " With an advantage below 0 it is at most what it would be at the ratio c_dual."
    mean = "N is the number of tokens in the minibatch."
    if config.loss_mean != "tokens":
        mean = "It is divided as the mean over tokens is (loss_mean)."
    return [
        Quantity("surrogate", "loss without the clip", "Jₜ", "policy",
                 "To lower this loss, the optimiser makes tokens with an advantage above 0 likelier and tokens with an "
                 "advantage below 0 less likely.", "ppo/policy_losses.py: policy_terms",
                 "-{advantage} * {ratio}"),
        Quantity("clipped_surrogate", "loss with the ratio clipped", "Jₜᶜˡⁱᵖ", "policy",
                 f"The same loss with the ratio clipped to {bounds}.", "ppo/policy_losses.py: policy_terms",
                 f"-{{advantage}} * clip({{ratio}}, 1 - {{policy_clip}}, 1 + {high})"),
        Quantity("policy_loss", "policy loss of this token", "Lₜ", "policy",
                 "The larger of the two losses. Once the ratio has moved beyond the clip in the wanted direction, "
                 "moving it further does not lower this loss." + most,
                 "ppo/policy_losses.py: policy_loss", loss),
        Quantity("gate", "gate", "gₜ", "policy",
                 "1 where the gradient passes. 0 where the clipped loss is the larger one"
                 + (" or the bound of the dual clip acts" if most else "") + ": it does not depend on the "
                 "policy, so it has no gradient.", "ppo/policy_losses.py: PolicyTerms.is_cut",
                 f"1 if {gate} else 0"),
        Quantity("unclipped_gradient", "gradient without the clip",
                 "(1/N) ∂Jₜ/∂log π" if config.loss_mean == "tokens" else "∂Jₜ/∂log π, in the mean", "policy",
                 f"The gradient of the loss without the clip with respect to the token's log-probability. {mean}",
                 "ppo/trace/recorder.py: Recorder", f"-{{advantage}} * {{ratio}} / {divisor}"),
    ]  # fmt: skip


def _critic(config: Config) -> list[Quantity]:
    error, clipped = "({new_value} - {return_value})**2", "({clipped_value} - {return_value})**2"
    found = [
        Quantity("new_value", "value, now", "V", "value",
                 "The sum of discounted rewards that the critic expects here at this minibatch.",
                 "ppo/actor_critic.py: ValueHead")
    ]  # fmt: skip
    if config.value_clip is not None:
        found.append(
            Quantity("clipped_value", "value, clipped", "Vᶜˡⁱᵖ", "value",
                     "The value now, but at most ε_V away from the value before the update.",
                     "ppo/losses.py: value_terms",
                     "{value} + clip({new_value} - {value}, -{value_clip}, {value_clip})")
        )  # fmt: skip
    return [
        *found,
        Quantity("value_loss", "value loss of this token", "Lₜⱽ", "value",
                 "Half the squared distance to the return"
                 + (", of the value that is further from it: the value now or the clipped one." if len(found) > 1
                    else "."), "ppo/losses.py: value_loss",
                 f"max({error}, {clipped}) / 2" if len(found) > 1 else f"{error} / 2"),
        Quantity("value_gate", "gate of the critic", "gₜⱽ", "value",
                 "1 where the gradient passes. 0 where the value has moved by more than ε_V and the clipped value is "
                 "further from the return." if len(found) > 1 else "Always 1, because values are not clipped here.",
                 "ppo/losses.py: ValueTerms.is_cut"),
        Quantity("value_gradient", "gradient of the critic", "∂loss/∂V", "value",
                 "The gradient of the minibatch's loss with respect to the value, as autograd found it. Above 0, the "
                 "optimiser lowers the value; below 0, it raises it.",
                 "torch.autograd", "{value_coef} * ({new_value} - {return_value}) * {value_gate} / {num_tokens}"),
    ]  # fmt: skip


def _after(config: Config) -> list[Quantity]:
    found = [
        Quantity("final_logprob", "log-prob, after", "log π_new", "after",
                 "The log-probability of the same token after all epochs of the update.",
                 "ppo/lm/logprobs.py: token_logprobs"),
        Quantity("final_probability", "probability, after", "π_new", "after",
                 "The probability of the same token after the update. Compare it with the one when it was drawn.",
                 "ppo/lm/logprobs.py: token_logprobs", "exp({final_logprob})"),
    ]  # fmt: skip
    if config.has_critic:
        found.append(
            Quantity("final_value", "value, after", "V_new", "after",
                     "The sum of discounted rewards that the critic expects here after the update. Its target was the "
                     "return.", "ppo/actor_critic.py: ValueHead")
        )  # fmt: skip
    return found
