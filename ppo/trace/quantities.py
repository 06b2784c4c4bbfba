# ruff: noqa: RUF001 (Greek letters are what is meant)
"""Every number of a trace: its name, its meaning, the function that makes it, and the formula to compute it by hand.

This module is a table. It computes nothing. :mod:`ppo.trace.symbols` says how a formula is written, and
:mod:`ppo.trace.update_quantities` has what a minibatch makes.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config
from .symbols import SECTIONS, Quantity
from .update_quantities import of_critic, of_policy

_KL = {
    "k1": "{old_logprob} - {ref_logprob}",
    "k2": "({old_logprob} - {ref_logprob})**2 / 2",
    "k3": "exp({ref_logprob} - {old_logprob}) - 1 - ({ref_logprob} - {old_logprob})",
}
_GROUP = {
    "grpo": "({reward_total} - {group_mean}) / ({group_std} + 1e-4)",
    "dr_grpo": "{reward_total} - {group_mean}",
    "rloo": "({reward_total} - {group_mean}) * {samples_per_prompt} / ({samples_per_prompt} - 1)",
    "reinforce++": "({reward_total} - {advantage_mean}) / sqrt({advantage_variance} + 1e-8)",
    "reinforce++_baseline": "({reward_total} - {group_mean} - {advantage_mean}) / sqrt({advantage_variance} + 1e-8)",
}


def quantities(
    config: Config,
    *,
    has_reference: bool,
    has_scores: bool,
    has_clip: bool,
    own_advantage: str = "",
    told: Sequence[Quantity] = (),
    is_forced: bool = False,
    has_heat: bool = False,
) -> list[Quantity]:
    """All quantities that a step under ``config`` has, in the order in which the step makes them.

    ``has_scores``: whether the reward is one score per response and not a number for each token. ``has_clip``: whether
    the policy loss is the clipped surrogate. ``own_advantage``: the name of an estimator that is not the library's. How
    it computes is not known here, so its numbers have no formula. ``is_forced``: actions were drawn at forced states;
    ``has_heat``: some of them from a hotter distribution. ``told``: quantities of the caller, in the place of those of
    the same key; new ones follow their section.
    """
    found = _of_state(has_heat) if is_forced else []
    found += [*_sampled(config, has_reference), _given(config, has_scores), *_rewarded(config, has_reference)]
    found += _judged_by(own_advantage, config) if own_advantage else _judged(config)
    found += of_policy(config, has_reference, has_clip)
    found += of_critic(config, has_own_advantage=bool(own_advantage)) if config.has_critic else []
    found += [*(_state_after() if is_forced else []), *_after(config, has_own_advantage=bool(own_advantage))]
    known, own = {q.key for q in found}, {q.key: q for q in told}
    found = [own.get(q.key, q) for q in found] + [q for q in told if q.key not in known]
    order = list(SECTIONS)
    return sorted(found, key=lambda q: order.index(q.section))


def _of_state(has_heat: bool) -> list[Quantity]:
    found = [
        Quantity("text_p", "probability of the true token", "p_y", "state",
                 "The policy's own probability of the token that truly stands here, given the text before it, before "
                 "the update" + (" and without heat." if has_heat else "."),
                 "ppo/trace/distributions.py: ask_distributions", is_share=True),
    ]  # fmt: skip
    if has_heat:
        found.append(
            Quantity("heat", "heat", "τ", "state",
                     "What divided all logits of this state before actions were drawn: 1 changes nothing, more makes "
                     "rare tokens likelier. Every probability of an action below is that of the heated distribution.",
                     "ppo/lm/logprobs.py: token_logprobs")
        )  # fmt: skip
    return found


def _state_after() -> list[Quantity]:
    return [
        Quantity("final_text_p", "probability of the true token, after", "p_y,new", "after",
                 "The policy's probability of the token that truly stands here after the update, without heat. Compare "
                 "it with the one before the update.", "ppo/trace/distributions.py: ask_distributions", is_share=True)
    ]  # fmt: skip


def _sampled(config: Config, has_reference: bool) -> list[Quantity]:
    found = [
        Quantity("old_logprob", "log-prob, old policy", "log π_old", "sample",
                 "The natural logarithm of the probability that the policy gave this token when it was drawn.",
                 "ppo/policy.py: Policy.old_statistics"),
        Quantity("old_probability", "probability, old policy", "π_old", "sample",
                 "The probability that the policy gave this token when it was drawn.",
                 "ppo/policy.py: Policy.old_statistics", "exp({old_logprob})", is_share=True),
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


def _judged_by(own_advantage: str, config: Config) -> list[Quantity]:
    """What an estimator returned that the library does not know, under its own name."""
    short, use = own_advantage.rpartition(".")[2], "the critic is trained to predict here"
    value = Quantity("value", "value", "Vₜ", "advantage",
                     "What the critic expected before this token was chosen. It is trained towards the return.",
                     "ppo/actor_critic.py: ActorCritic.evaluate")  # fmt: skip
    return [
        *([value] if config.has_critic else []),
        Quantity("advantage", f"advantage ({short})", "Âₜ", "advantage",
                 f"What {own_advantage} returned for this token, as it is. Above 0, the update makes the token "
                 "likelier; below 0, less likely.", own_advantage),
        Quantity("return_value", f"return ({short})", "Rₜ", "advantage",
                 f"What {own_advantage} returned as "
                 + (f"the value that {use}." if config.has_critic else "a return. No critic learns from it."),
                 own_advantage),
    ]  # fmt: skip


def _after(config: Config, *, has_own_advantage: bool) -> list[Quantity]:
    expects = (
        "What the critic expects" if has_own_advantage else "The sum of discounted rewards that the critic expects"
    )
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
                     f"{expects} here after the update. Its target was the return.",
                     "ppo/actor_critic.py: ValueHead")
        )  # fmt: skip
    return found
