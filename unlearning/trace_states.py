# ruff: noqa: RUF001 (Greek letters are what is meant)
"""What a trace of the preset deep shows beside the library's numbers: chance levels, exact means, how an action is
judged.

The library knows forced states, and not what this preset does there (:mod:`unlearning.deep.forced`). This module knows
both, and computes nothing but a mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppo.trace import StatesTold
from ppo.trace.states import Notes
from ppo.trace.symbols import Quantity
from ppo.types import Rollout, Sample
from unlearning.deep.forced import LEAST_DEVIATION, MOST_REWARD, bounded_tokens

_FORCED = "unlearning/deep/forced.py"
QUANTITIES = (
    Quantity("chance", "chance level of the true token", "b", "state",
             "The probability to which the bounded reference takes the true token down: how likely it would be in a "
             "passage of this form that the model never saw. 1 bounds nothing: in a text of the policy's own, behind "
             "the first token that is not the truth.", "unlearning/deep/chance.py: chance_levels", is_share=True),
    Quantity("state_mean", "exact mean reward", "μ", "state",
             "The mean of the reward over the policy's whole distribution in this state, not over the draws. It is "
             "minus the KL divergence to the bounded reference, apart from the bound on the reward: 0 where the policy "
             "already is what the reference asks for.", f"{_FORCED}: ForcedStates"),
    Quantity("state_deviation", "exact deviation of the reward", "σ", "state",
             "The standard deviation of the reward over the policy's whole distribution in this state.",
             f"{_FORCED}: ForcedStates"),
    Quantity("ref_logprob", "log-prob, bounded reference", "log π_ref", "sample",
             "The log-probability of the same token under the bounded reference: the model before unlearning, with the "
             f"true token no likelier than its chance level, with the same heat. At most {MOST_REWARD:g} nats from the "
             "policy's.", f"{_FORCED}: bounded_reference"),
    Quantity("kl", "log-ratio to the bounded reference", "KLₜ", "sample",
             "How much likelier the policy finds this token than the bounded reference does, in nats. Its mean over "
             "the policy's distribution is the KL divergence between the two.", "ppo/kl.py: estimate_kl",
             "{old_logprob} - {ref_logprob}"),
    Quantity("token_reward", "reward given", "sₜ", "reward",
             "Always 0: no function scores an action. All of the reward is the log-ratio.", f"{_FORCED}: no_score"),
    Quantity("advantage", "advantage", "Âₜ", "advantage",
             "How much better this action is than the policy's mean in this state, in deviations. A deviation below "
             f"{LEAST_DEVIATION:g} counts as {LEAST_DEVIATION:g}, so that the noise of a state that is nearly right is "
             "not blown up. Above 0, the update makes the action likelier; below 0, less likely.",
             f"{_FORCED}: state_advantages",
             f"({{reward}} - {{state_mean}}) / max({{state_deviation}}, {LEAST_DEVIATION})"),
    Quantity("return_value", "return", "Rₜ", "advantage",
             "The reward itself: an action is an episode of one token, so nothing follows. There is no critic to learn "
             "it.", f"{_FORCED}: state_advantages", "{reward}"),
)  # fmt: skip


def told_states() -> StatesTold:
    """What to tell the library of the preset's states."""
    return StatesTold(QUANTITIES, _notes)


def _notes(sample: Sample, text: Sequence[int]) -> Notes:
    tokens, chance = bounded_tokens(text, sample.row)
    numbers = {
        "chance": chance,
        "state_mean": sample.info.means.tolist(),
        "state_deviation": sample.info.deviations.tolist(),
    }
    remark = "the policy's own" if sample.row.get("is_own") else "of a passage"
    return Notes(tokens, numbers, remark)


def is_own(rollout: Rollout) -> list[bool]:
    """Which rows hold a text of the policy's own."""
    return [bool(sample.row.get("is_own")) for sample in rollout.samples]


def mean_rewards(rollout: Rollout) -> list[float]:
    """The mean reward of each row's actions."""
    mask = rollout.generation.action_mask
    means: list[float] = ((rollout.rewards * mask).sum(dim=1) / mask.sum(dim=1)).tolist()
    return means
