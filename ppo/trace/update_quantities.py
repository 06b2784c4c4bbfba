# ruff: noqa: RUF001 (Greek letters are what is meant)
"""The numbers of a trace that a minibatch makes: what the loss of the policy and of the critic are for one token.

This module is a part of the table :mod:`ppo.trace.quantities`. It computes nothing.
"""

from __future__ import annotations

from ..config import Config
from .symbols import Quantity

_KL_SLOPE = {"k2": "({logprob} - {ref_logprob})", "k3": "(1 - exp({ref_logprob} - {logprob}))"}
_DIVISOR = {
    "tokens": "{num_tokens}",
    "sequences": "({minibatch} * {num_actions})",
    "sequence_sums": "{minibatch}",
    "constant": "({minibatch} * {response_length})",
}


def of_policy(config: Config, has_reference: bool, has_clip: bool) -> list[Quantity]:
    """Of the policy and its loss. ``has_clip``: whether the loss is the clipped surrogate."""
    divisor, slope, extra = _DIVISOR[config.loss_mean], "", ""
    if has_clip:
        slope, extra = f"-{{advantage}} * {{ratio}} * {{gate}} / {divisor}", " It is 0 where the clip cuts it off."
    if has_clip and config.kl_as == "loss" and has_reference:
        slope += f" + {{kl_coef}} * {_KL_SLOPE[config.kl_estimator]} / {divisor}"
        extra = " Where the clip cuts off the part of the policy loss, the part of the KL loss remains: it pulls the "
        extra += "policy back to the reference."
    if config.positive_coef:
        slope, extra = "", extra + " The language-model loss on responses that scored high is a part of it."
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


def of_critic(config: Config, *, has_own_advantage: bool) -> list[Quantity]:
    """Of the critic and its loss. ``has_own_advantage``: the returns need not be sums of discounted rewards."""
    expects = (
        "What the critic expects" if has_own_advantage else "The sum of discounted rewards that the critic expects"
    )
    error, clipped = "({new_value} - {return_value})**2", "({clipped_value} - {return_value})**2"
    found = [
        Quantity("new_value", "value, now", "V", "value",
                 f"{expects} here at this minibatch.",
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
