"""What a golden run trains: for each case the changes to one small Config, a model, a reward, and what must happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STEPS = 3
SMALL: dict[str, Any] = {
    "prompts_per_step": 8, "minibatch": 4, "response_length": 8, "rollout_slots": 5, "epochs": 2,
    "learning_rate": 3e-3, "adam_eps": 1e-5, "kl_coef": 0.1, "kl_controller": "fixed", "seed": 3,
    "save_every_steps": 1, "keep_checkpoints": STEPS,
}  # fmt: skip
"""These settings are nobody's defaults, so a changed default does not show here. tests/ppo/test_config.py tests it."""


@dataclass(frozen=True)
class Case:
    """One training of three steps.

    ``changes``: to ``SMALL``. ``adapter``, ``reward``, ``has_reference``: see :mod:`tests.golden.tiny`. ``processes``:
    how many train together. ``must``: metrics that must differ from 0 in at least one step; otherwise the case does
    not show what it is for. ``by_hand``: rollout, update and trace instead of ``train``. ``fitting``: how many
    sequences fit the memory of the last process at once.
    """

    changes: dict[str, Any]
    family: str = "llama"
    dtype: str = "float32"
    layers: int = 2
    adapter: str | None = None
    reward: str = "score"
    has_reference: bool = False
    processes: int = 1
    by_hand: bool = False
    fitting: int | None = None
    must: tuple[str, ...] = field(default=())


GROUPS = {"samples_per_prompt": 2, "prompts_per_step": 4}
KEEP = {"retain_coef": 0.5, "retain_tokens": 6, "retain_sequences": 3}
ADAPTIVE = {"kl_controller": "adaptive", "target_kl_per_sequence": 0.4, "kl_horizon_sequences": 40}
FILTERS = {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_response_length": 3}

CASES: dict[str, Case] = {
    # Critics
    "linear": Case({}),
    "mlp": Case(
        {
            "value_head": "mlp", "value_learning_rate": 1e-2, "schedule": "linear", "warmup_steps": 2,
            "total_steps": 6, "microbatch_tokens": 24,
        },
        family="gpt2",
    ),
    "detached": Case({"detach_value_head": True, "value_clip": None, "gamma": 0.9, "gae_lambda": 0.8}, family="neox"),
    "critic": Case({"value_head": "critic", "old_logprobs": "recompute", "microbatch": 2}),
    "critic_gpt2": Case({"value_head": "critic", "schedule": "cosine", "total_steps": 5}, family="gpt2"),
    # Advantages
    "grpo": Case({"advantage": "grpo", "kl_as": "loss", "kl_estimator": "k3", **GROUPS}, family="gpt2"),
    "rloo": Case(
        {"advantage": "rloo", "kl_estimator": "k2", "whiten_advantages": False, **GROUPS, **ADAPTIVE,
         "target_kl_per_sequence": 0.22}
    ),
    # Rewards and KL
    "token_rewards": Case(
        {"missing_eos_penalty": 0.5, "whiten_rewards": True, "kl_estimator": "k3"}, family="neox", reward="token_scores"
    ),
    "scaled_scores": Case({"scale_scores": True, "clip_scores": 0.8}, family="neo", reward="noisy"),
    "adaptive_kl": Case({**ADAPTIVE, "reference_batch_tokens": 50}, family="gpt2"),
    "kl_loss": Case({"kl_as": "loss", "kl_estimator": "k2", "kl_coef": 0.5}, family="opt"),
    "no_kl": Case(
        {"kl_coef": 0.0, "deterministic": True, "weight_decay": 0.1, "adam_eps_style": "tensorflow",
         "max_grad_norm": None, "adam_beta1": 0.8, "adam_beta2": 0.95}
    ),
    "own_reference": Case({"kl_coef": 0.3}, has_reference=True),
    "bfloat16_reference": Case({"reference_dtype": "bfloat16", "reference_batch_tokens": 20}),
    # Text to keep
    "retain_lm": Case({**KEEP, "microbatch": 1, "max_grad_norm": 0.1}, must=("retain/loss",)),
    "retain_kl": Case({**KEEP, "retain_loss": "kl", "kl_coef": 0.0}, family="gpt2", must=("retain/loss",)),
    # What is trained
    "lora": Case({**KEEP, "retain_loss": "kl"}, adapter="own"),
    "peft_lora": Case({"gradient_checkpointing": True}, adapter="peft"),
    "tuned_lora": Case({"value_head": "mlp", "microbatch": 2}, family="gpt2", adapter="tuned"),
    "top_layers": Case({"train_top_layers": 1, "old_logprobs": "recompute"}, family="gpt2", layers=3),
    "top_layers_critic": Case({"train_top_layers": 1, "value_head": "critic", "microbatch": 2}, layers=3),
    # Precision and memory
    "bfloat16": Case({"moment_dtype": "bfloat16", "learning_rate": 1e-2}, dtype="bfloat16"),
    "float64": Case({"entropy_coef": 0.01}, dtype="float64", family="gpt2"),
    "bfloat16_moments": Case({"moment_dtype": "bfloat16", "value_head": "critic"}, family="neox"),
    "autocast": Case({"autocast": "bfloat16", **KEEP}),
    "gradient_checkpointing": Case({"gradient_checkpointing": True, "value_head": "mlp", "logprob_chunk_tokens": 7}),
    # Sampling
    "filters": Case({**FILTERS, "entropy_coef": 0.02}, family="gpt2"),
    "generic": Case({**FILTERS, "microbatch_tokens": 30}, family="bloom"),
    # Brakes
    "stop_kl": Case(
        {"stop_kl_per_token": 0.01, "learning_rate": 0.03, "epochs": 4}, must=("update/stopped_early",)
    ),
    "brake": Case({"max_mean_ratio": 1.02, "learning_rate": 0.05}, must=("update/skipped_minibatches",)),
    # Memory that runs out
    "memory": Case({}, fitting=2, family="gpt2"),
    "memory_generic": Case({"microbatch_tokens": 60}, fitting=3, family="bloom"),
    # By hand
    "by_hand": Case({"scale_scores": True, "whiten_rewards": True, **KEEP}, by_hand=True),
    "by_hand_grpo": Case({"advantage": "grpo", **GROUPS}, family="gpt2", by_hand=True),
    # Two processes
    "two": Case({"whiten_rewards": True, "scale_scores": True, **KEEP}, processes=2),
    "two_grpo": Case({"advantage": "grpo", "microbatch": 1, **GROUPS}, family="gpt2", processes=2),
    "two_memory": Case({"scale_scores": True, "minibatch": 8}, fitting=2, processes=2),
    "fsdp": Case({"sharding": "fsdp", "value_head": "critic"}, processes=2),
    "fsdp_in_step": Case({"sharding": "fsdp", "gather_for_rollouts": False, **KEEP, "retain_loss": "kl"}, processes=2),
}  # fmt: skip

COMMITTED = ("linear", "critic", "retain_kl", "lora")
"""Whose checkpoints lie in tests/golden/checkpoints."""
