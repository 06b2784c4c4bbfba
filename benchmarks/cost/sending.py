"""What devices send each other in one step: bytes that each of them passes on, by the ring algorithms' counts.

Without sharding gradients are summed once a minibatch (all-reduce). FSDP2 gathers every block for the forward pass and
again for the backward pass, of every microbatch, and scatters the sums of gradients; a rollout gathers the whole model,
or every block for every token. Generations and numbers that are exchanged besides are small.
"""

from __future__ import annotations

from .architecture import Architecture
from .device import Work
from .parameters import Counts
from .plan import Plan


def gather(part: str, size: float, plan: Plan) -> Work:
    """All-gather of ``size`` bytes that are split; nothing where they are not."""
    return Work(part, "all-gather", sent=_share(plan) * size if plan.is_sharded else 0.0)


def gather_blocks(part: str, size: float, plan: Plan, *, passes: int) -> Work:
    """``size`` bytes of blocks, one after another in each of so many passes, and copied out of what has arrived."""
    moved, sent = 2 * size * passes, _share(plan) * size * passes
    return Work(part, "all-gather, block by block", moved=moved, sent=sent)


def sum_gradients(plan: Plan, counts: Counts) -> Work:
    """All-reduce once a minibatch; under FSDP2 reduce-scatter once a microbatch."""
    size = plan.weight_bytes * counts.trained
    if plan.is_sharded:
        return Work("update", "reduce-scatter", sent=_share(plan) * size * plan.epochs * plan.microbatches)
    moved = 4 * size * plan.optimizer_steps if plan.devices > 1 else 0.0  # into buckets and back
    return Work("update", "all-reduce", moved=moved, sent=2 * _share(plan) * size * plan.optimizer_steps)


def update_gathers(arch: Architecture, plan: Plan, counts: Counts) -> list[Work]:
    """Blocks twice, the rest once, for every microbatch."""
    if not plan.is_sharded:
        return []
    size = plan.weight_bytes * (2 * counts.blocks + counts.root)
    return [gather("update", size * plan.epochs * plan.microbatches, plan)]


def _share(plan: Plan) -> float:
    """Of a tensor, that one of n devices lacks: (n - 1) / n."""
    return (plan.devices - 1) / plan.devices
