"""The details of PPO that can be switched, one by one: what each run of benchmarks.ablations changes.

A variant changes the config, or the trainer before its first step where no config field does it. This module knows how
to switch, not how to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import ppo

STEPS = 30

BASE = ppo.Config(
    prompts_per_step=32,
    minibatch=8,
    response_length=24,
    epochs=4,
    learning_rate=1e-4,
    value_learning_rate=1e-3,
    kl_coef=0.05,
)
"""The config that every variant changes: the library's defaults, but for the fields that a small model, short responses
and 30 steps need.
"""


def differences() -> str:
    """Where ``BASE`` is not the library's default, in words."""
    defaults = ppo.Config().to_dict()
    changed = {name: value for name, value in BASE.to_dict().items() if value != defaults[name]}
    return ", ".join(f"{name} {value:g} (not {defaults[name]})" for name, value in changed.items())


def nothing(trainer: ppo.Trainer) -> None:
    """For variants that change the config alone."""


@dataclass(frozen=True)
class Variant:
    """``changes`` of ``BASE``; ``prepare`` is called with the trainer before its first step."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[ppo.Trainer], None] = nothing

    def config(self, *, seed: int) -> ppo.Config:
        return BASE.replace(seed=seed, **self.changes)


def randomise_value_head(trainer: ppo.Trainer) -> None:
    """Initialise the value head as many libraries do: normal, with a standard deviation of 1/√(H + 1)."""
    assert trainer.policy.actor.value_head is not None
    last = trainer.policy.actor.value_head.layers[-1]
    assert isinstance(last, nn.Linear)
    generator = torch.Generator().manual_seed(trainer.config.seed)
    nn.init.normal_(last.weight, std=(last.in_features + 1) ** -0.5, generator=generator)


def switch_dropout_on(trainer: ppo.Trainer) -> None:
    """Dropout of 0.1 in the updates, as in a model that was left in training mode. Rollouts have none."""
    for module in trainer.policy.actor.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    trainer.policy.actor.train()


def evaluate_at_another_temperature(trainer: ppo.Trainer) -> None:
    """The classic mistake: the sampler keeps its temperature, but updates and reference compute log-probs at 1."""
    evaluate, plain = trainer.policy.actor.evaluate, ppo.Sampling(response_length=trainer.config.response_length)

    def at_one(generation: ppo.Generation, sampling: ppo.Sampling, **options: Any) -> ppo.Evaluation:
        return evaluate(generation, plain, **options)

    trainer.policy.actor.evaluate = at_one  # type: ignore[method-assign]
    if isinstance(trainer.collector.reference, ppo.FrozenReference):
        trainer.collector.reference.sampling = plain


_GROUPS = {"prompts_per_step": 8, "samples_per_prompt": 4}
_UNCHECKED = {"max_logprob_gap_nats": 1e3}  # else the library stops at the first minibatch of these two mistakes

VARIANTS: dict[str, Variant] = {
    "base": Variant(f"the task's base: the library's defaults, but {differences()}"),
    "recompute": Variant(
        "old log-probs from the training forward (float32: another rounding, nothing else)",
        {"old_logprobs": "recompute"},
    ),
    "dropout": Variant("dropout acts in the updates", _UNCHECKED, switch_dropout_on),
    "cold": Variant("temperature 0.7", {"temperature": 0.7}),
    "cold-mismatch": Variant(
        "temperature 0.7 when sampling, 1 when measuring",
        {"temperature": 0.7, **_UNCHECKED},
        evaluate_at_another_temperature,
    ),
    "top-p": Variant("top-p 0.9, in sampling and measuring", {"top_p": 0.9}),
    "top-p-replay": Variant(
        "top-p 0.9, and the update keeps what the old policy kept", {"top_p": 0.9, "kept_sets": "replay"}
    ),
    "missing-eos": Variant("a response that was cut costs 1", {"missing_eos_penalty": 1.0}),
    "scale-scores": Variant("scores divided by their running standard deviation", {"scale_scores": True}),
    "clip-scores": Variant("scores clipped at 1.5", {"clip_scores": 1.5}),
    "whiten-rewards": Variant("rewards whitened, mean kept", {"whiten_rewards": True}),
    "no-kl": Variant("no KL penalty", {"kl_coef": 0.0}),
    "adaptive-kl": Variant(
        "the KL coefficient adapts within the run (horizon 160 responses, not 10,000)", {"kl_horizon_sequences": 160}
    ),
    "kl-k3": Variant("k3 instead of k1 in the reward", {"kl_estimator": "k3"}),
    "kl-loss": Variant("KL as a loss (k3), not in the reward", {"kl_as": "loss", "kl_estimator": "k3"}),
    "gamma-0.95": Variant("a discount: gamma = 0.95", {"gamma": 0.95}),
    "lambda-0": Variant("lambda = 0: the TD error alone", {"gae_lambda": 0.0}),
    "lambda-1": Variant("lambda = 1: the whole return", {"gae_lambda": 1.0}),
    "no-whitening": Variant("advantages as they are", {"whiten_advantages": False}),
    "rloo": Variant(
        "RLOO: 8 prompts x 4 samples, no critic",
        {"advantage": "rloo", "prompts_per_step": 8, "samples_per_prompt": 4},
    ),
    "grpo": Variant(
        "GRPO: 8 prompts x 4 samples, no critic",
        {"advantage": "grpo", "prompts_per_step": 8, "samples_per_prompt": 4},
    ),
    "dr-grpo": Variant("Dr. GRPO: GRPO without the division", {"advantage": "dr_grpo", **_GROUPS}),
    "dr-grpo-constant": Variant(
        "Dr. GRPO as in its paper: sums over tokens, divided by a constant",
        {"advantage": "dr_grpo", "loss_mean": "constant", **_GROUPS},
    ),
    "reinforce-pp": Variant("REINFORCE++: total rewards, whitened over the step", {"advantage": "reinforce++"}),
    "reinforce-pp-baseline": Variant(
        "REINFORCE++ with the group's mean as baseline", {"advantage": "reinforce++_baseline", **_GROUPS}
    ),
    "critic-lambda": Variant("the critic learns whole returns (its lambda 1)", {"value_gae_lambda": 1.0}),
    "length-lambda": Variant(
        "the policy's lambda follows the length (alpha 0.5), the critic's is 1",
        {"gae_length_alpha": 0.5, "value_gae_lambda": 1.0},
    ),
    "critic-warmup": Variant(
        "a separate critic learns alone in the first 5 steps",
        {"value_head": "critic", "value_learning_rate": 1e-4, "critic_warmup_steps": 5},
    ),
    "redraw": Variant(
        "GRPO, and groups of equal scores give way to other prompts",
        {"advantage": "grpo", "redraw_rounds": 2, **_GROUPS},
    ),
    "overlong": Variant("the last 8 tokens cost up to 1", {"overlong_penalty": 1.0, "overlong_tokens": 8}),
    "mask-overlong": Variant("responses without an end are not trained on", {"mask_overlong": True}),
    "random-head": Variant("the value head starts at random", prepare=randomise_value_head),
    "detached": Variant("the value loss does not train the policy's blocks", {"detach_value_head": True}),
    "mlp-head": Variant("a value head with a hidden layer", {"value_head": "mlp"}),
    "separate-critic": Variant(
        "a separate critic, at the policy's rate", {"value_head": "critic", "value_learning_rate": 1e-4}
    ),
    "one-rate": Variant(
        "the value head at the policy's rate, as the library has it by default", {"value_learning_rate": None}
    ),
    "no-value-clip": Variant("the value loss is not clipped", {"value_clip": None}),
    "value-coef-1": Variant("the value loss weighs 1, not 0.1", {"value_coef": 1.0}),
    "no-clip": Variant("the ratio is not clipped", {"policy_clip": 1e9}),
    "no-brake": Variant(
        "the ratio is not clipped, and no minibatch is skipped", {"policy_clip": 1e9, "max_mean_ratio": None}
    ),
    "clip-higher": Variant("the ratio may go up to 1.28 (DAPO)", {"policy_clip_high": 0.28}),
    "dual-clip": Variant("the dual clip at a ratio of 3", {"policy_dual_clip": 3.0}),
    "gspo": Variant(
        "GSPO: the clipped ratio of the response",
        {"policy_loss": "gspo", "policy_clip": 3e-3, "loss_mean": "sequences"},
    ),
    "cispo": Variant(
        "CISPO: the clipped ratio as a weight", {"policy_loss": "cispo", "policy_clip": 1.0, "policy_clip_high": 0.2}
    ),
    "reinforce": Variant(
        "REINFORCE: no ratio; one epoch, one minibatch", {"policy_loss": "reinforce", "epochs": 1, "minibatch": 32}
    ),
    "mean-of-sequences": Variant("every response weighs the same", {"loss_mean": "sequences"}),
    "sum-of-sequences": Variant("the mean over responses of sums over tokens", {"loss_mean": "sequence_sums"}),
    "importance": Variant(
        "bfloat16 autocast, the sampler's difference corrected (token weights up to 2)",
        {"autocast": "bfloat16", "old_logprobs": "recompute", "importance": "token", "importance_cap": 2.0},
    ),
    "positive": Variant(
        "a language-model loss on responses that score above 1.5", {"positive_coef": 0.1, "positive_score": 1.5}
    ),
    "one-epoch": Variant("one epoch instead of four", {"epochs": 1}),
    "one-minibatch": Variant("one minibatch of 32 instead of four of 8", {"minibatch": 32}),
    "no-grad-clip": Variant("the gradient is not clipped", {"max_grad_norm": None}),
    "adam-eps": Variant("Adam's ε 1e-5 instead of 1e-8", {"adam_eps": 1e-5}),
    "adam-eps-tf": Variant("Adam's ε 1e-5, TensorFlow's way", {"adam_eps": 1e-5, "adam_eps_style": "tensorflow"}),
    "warm-up": Variant("the rate rises over 10 steps", {"warmup_steps": 10}),
    "linear": Variant("the rate falls to 0", {"schedule": "linear", "total_steps": STEPS}),
    "stop-kl": Variant("a step ends at 0.02 nats a token", {"stop_kl_per_token": 0.02}),
    "entropy": Variant("an entropy bonus of 0.01", {"entropy_coef": 0.01}),
    "retain": Variant(
        "a language-model loss on text to keep", {"retain_coef": 0.1, "retain_tokens": 64, "retain_sequences": 4}
    ),
    "retain-kl": Variant(
        "KL to the start over the whole vocabulary, on text to keep",
        {"retain_coef": 0.1, "retain_tokens": 64, "retain_sequences": 4, "retain_loss": "kl"},
    ),
    "bf16": Variant("bfloat16 autocast", {"autocast": "bfloat16"}),
}
