"""The settings of one PPO step that decide its cost. Names and defaults are those of ``ppo.Config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "autocast", "bfloat16"]


@dataclass(frozen=True)
class Plan:
    """``prompts`` and ``minibatch`` (sequences; None: the whole step) count over all devices, ``microbatch`` on one.

    ``precision``: "autocast" means bfloat16 products over float32 weights, "bfloat16" means bfloat16 weights. All
    responses have their full length. ``lora_rank`` > 0 adapts every linear layer of the blocks, with the adapter
    switched off as the reference. ``train_top_layers``: the blocks below are frozen, computed once a step and shared.
    ``gather_for_rollouts=False``: FSDP2 gathers one block at a time in rollout and reference, too, never the model.
    """

    prompts: int = 32
    samples: int = 1
    prompt_length: int = 50
    response_length: int = 50
    epochs: int = 4
    minibatch: int | None = None
    microbatch: int | None = None
    precision: Precision = "float32"
    moments: Literal["float32", "bfloat16"] = "float32"
    value_head: Literal["linear", "critic"] = "linear"
    reference: Literal["copy", "copy-bfloat16", "none"] = "copy"
    lora_rank: int = 0
    train_top_layers: int | None = None
    gradient_checkpointing: bool = False
    devices: int = 1
    sharding: Literal["none", "fsdp"] = "none"
    gather_for_rollouts: bool = True
    rollout_slots: int = 64
    reference_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "prompt_length", "response_length", "epochs", "devices", "rollout_slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"Plan.{name}={getattr(self, name)} must be at least 1")
        if self.lora_rank and self.train_top_layers is not None:
            raise ValueError(
                f"lora_rank={self.lora_rank} and train_top_layers={self.train_top_layers}: take one of them"
            )
        if self.sharding == "fsdp" and (self.precision == "bfloat16" or self.moments == "bfloat16"):
            raise ValueError("sharding='fsdp' needs float32 weights and moments; take precision='autocast'")
        if not self.gather_for_rollouts and self.sharding != "fsdp":
            raise ValueError("gather_for_rollouts=False needs sharding='fsdp': without it all weights are whole")
        shares_frozen = self.lora_rank > 0 or self.train_top_layers is not None
        if self.sharding == "fsdp" and self.value_head == "critic" and shares_frozen:
            raise ValueError(
                "sharding='fsdp' cannot split a critic that shares frozen weights: take value_head='linear'"
            )
        for name, value, parts in (
            ("prompts", self.prompts, self.devices),
            ("minibatch", self.minibatch_sequences, self.devices),
            ("minibatch", self.own_sequences, max(self.own_minibatch, 1)),
            ("microbatch", self.own_minibatch, self.own_microbatch),
        ):
            if value % parts:
                raise ValueError(
                    f"Plan.{name}: {value} sequences cannot be split into {parts} or into parts of {parts}"
                )

    @property
    def own_sequences(self) -> int:
        """Sequences of a step on one device."""
        return self.prompts // self.devices * self.samples

    @property
    def minibatch_sequences(self) -> int:
        return self.prompts * self.samples if self.minibatch is None else self.minibatch

    @property
    def own_minibatch(self) -> int:
        return self.minibatch_sequences // self.devices

    @property
    def own_microbatch(self) -> int:
        return self.own_minibatch if self.microbatch is None else min(self.microbatch, self.own_minibatch)

    @property
    def microbatches(self) -> int:
        """Forward and backward passes of one device in one epoch."""
        return self.own_sequences // self.own_microbatch

    @property
    def optimizer_steps(self) -> int:
        """Steps of the optimiser in one PPO step."""
        return self.epochs * (self.own_sequences // self.own_minibatch)

    @property
    def length(self) -> int:
        """Tokens of a sequence, prompt and response."""
        return self.prompt_length + self.response_length

    @property
    def weight_bytes(self) -> int:
        return 2 if self.precision == "bfloat16" else 4

    @property
    def reference_bytes(self) -> int:
        """Bytes of one weight of a frozen copy."""
        return 2 if self.reference == "copy-bfloat16" else self.weight_bytes

    @property
    def product_bytes(self) -> int:
        """Bytes of one number that a linear layer reads or writes in training."""
        return 4 if self.precision == "float32" else 2

    @property
    def is_sharded(self) -> bool:
        return self.sharding == "fsdp" and self.devices > 1

    @property
    def is_never_whole(self) -> bool:
        """Whether rollout and reference, too, gather split weights one block at a time."""
        return self.is_sharded and not self.gather_for_rollouts

    @property
    def asked_again(self) -> tuple[str, ...]:
        """Which training forwards compute old log-probs or values, where those of the sampler are not exact."""
        policy = ("policy",) if self.precision != "float32" else ()
        return (*policy, "critic") if self.value_head == "critic" else policy
