"""How many weights a run holds: policy, critic, frozen copy, and those that are trained.

Frozen weights are shared, not copied, as in ``ppo.lm.adapters.copy_trained``. A bfloat16 copy copies all weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from .architecture import Architecture
from .plan import Plan


@dataclass(frozen=True)
class Counts:
    """Numbers of weights, not bytes.

    ``copied``: the reference's own; ``copied_blocks``: those of them that FSDP2 splits. ``root``: the weights of policy
    and critic outside their blocks; ``block``: the largest unit that is gathered. ``trained_root`` and
    ``trained_block``: the parts of these two that have gradients; under LoRA the value head and the adapters.
    """

    policy: int
    critic: int
    copied: int
    copied_blocks: int
    trained: int
    root: int
    block: int
    trained_root: int
    trained_block: int

    @property
    def blocks(self) -> int:
        """The weights in the blocks of policy and critic."""
        return self.policy + self.critic - self.root


def count(arch: Architecture, plan: Plan) -> Counts:
    """The counts of one run. A separate critic is a copy of the policy's trained weights, with a value head."""
    adapter = plan.lora_rank * arch.layers * sum(inputs + outputs for inputs, outputs in arch.linears)
    head = arch.width + 1
    block = arch.block_parameters + adapter // arch.layers
    policy = arch.parameters + adapter
    trained_block = block
    if plan.lora_rank:
        trained, copied, trained_block = adapter, 0, adapter // arch.layers
    elif plan.train_top_layers is not None:
        trained = copied = min(plan.train_top_layers, arch.layers) * arch.block_parameters
    else:
        trained = copied = arch.parameters
    if plan.reference == "copy-bfloat16" and not plan.lora_rank:
        copied = arch.parameters
    if plan.reference == "none":
        copied = 0
    has_critic = plan.value_head == "critic"
    # The critic's own output layer, where it has one, is held but never trained: no value depends on it.
    idle = 0 if arch.is_tied or trained < arch.parameters else arch.embedding_parameters
    root = (arch.parameters - arch.layers * arch.block_parameters) * (2 if has_critic else 1) + head
    has_trained_root = not plan.lora_rank and plan.train_top_layers is None
    return Counts(
        policy=policy,
        critic=(trained if has_critic else 0) + head,
        copied=copied,
        copied_blocks=min(copied, arch.layers * arch.block_parameters),
        trained=trained + head + (trained - idle if has_critic else 0),
        root=root,
        block=block,
        trained_root=root - (idle if has_critic else 0) if has_trained_root else head,
        trained_block=trained_block,
    )
