"""What devices send each other in one step: the bytes that each device passes on in ring algorithms.

Without sharding, gradients are summed once a minibatch (all-reduce). FSDP2 gathers every block for the forward pass and
again for the backward pass of every microbatch, and scatters the sums of gradients. A rollout gathers the whole model,
or every block for every token. Responses and statistics that are exchanged, too, are small.
"""

from __future__ import annotations

from .architecture import Architecture
from .device import Work
from .parameters import Counts
from .plan import Plan


def gather(part: str, size: float, plan: Plan) -> Work:
    """All-gather of ``size`` bytes that are split; no work where they are not."""
    return Work(part, "all-gather", sent=_share(plan) * size if plan.is_sharded else 0.0)


def gather_blocks(part: str, size: float, plan: Plan, *, passes: int) -> Work:
    """All-gather of ``size`` bytes of blocks, block by block in every pass, and a copy out of the receive buffer."""
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
    """All-gathers of an update: the blocks twice and the rest once for every microbatch."""
    if not plan.is_sharded:
        return []
    size = plan.weight_bytes * (2 * counts.blocks + counts.root)
    return [gather("update", size * plan.epochs * plan.microbatches, plan)]


def _share(plan: Plan) -> float:
    """The share of a tensor that one of n devices lacks: (n - 1) / n."""
    return (plan.devices - 1) / plan.devices
