"""What one device holds in each phase of a PPO step, in bytes by component; the peak is the largest phase.

Lasting memory (weights, frozen copy, moments) is the sum of its tensors. Passing memory is counted at the phase's
fullest moment. A backward pass is fullest at its start (all activations) or at its end (all gradients); from the second
microbatch on it holds both at its start. FSDP2's own buffers were read in the code of torch 2.13 and seen in its
profiler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .architecture import Architecture
from .device import Device
from .kept import kept_activations, kept_casts
from .parameters import Counts, count
from .plan import Plan
from .rollout import copied_weights

_TILE_ROWS, _TILE_WIDTH = 1024, 2048  # ppo.lm.tiled_logprobs
_BUCKET = 2**23  # numbers; ppo.distributed
_PREFILL_TOKENS = 512  # prompt tokens in one pass; ppo.generation.admission
PHASES = ("rollout", "reference", "update", "optimiser")


@dataclass(frozen=True)
class Memory:
    """``phases``: bytes by component of each of ``PHASES``, ``reserved`` on top of each."""

    phases: dict[str, dict[str, float]]
    reserved: float

    def total(self, phase: str) -> float:
        return self.reserved + sum(self.phases[phase].values())

    @property
    def fullest(self) -> str:
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> float:
        return self.total(self.fullest)


def step_memory(arch: Architecture, plan: Plan, device: Device) -> Memory:
    """The memory of one device; it may be more than the device has."""
    counts = count(arch, plan)
    lasting = _lasting(plan, counts)
    gradients = plan.weight_bytes * counts.trained / _parts(plan)
    optimiser = {"gradients": gradients}
    if plan.devices > 1 and not plan.is_sharded:
        optimiser["all-reduce bucket"] = plan.weight_bytes * max(_BUCKET, _largest_tensor(arch, plan))
    phases = {
        "rollout": _rollout(arch, plan, counts, packs_weights=device.packs_weights),
        "reference": _reference(arch, plan, counts),
        "update": _update(arch, plan, counts, gradients),
        "optimiser": optimiser,
    }
    return Memory({name: lasting | parts for name, parts in phases.items()}, device.reserved)


def _parts(plan: Plan) -> int:
    return plan.devices if plan.is_sharded else 1


def _lasting(plan: Plan, counts: Counts) -> dict[str, float]:
    """Bytes that last for the whole step. FSDP2 splits only the blocks of a frozen copy."""
    parts = _parts(plan)
    whole = counts.copied - counts.copied_blocks
    moment = 2 if plan.moments == "bfloat16" else 4
    return {
        "policy": plan.weight_bytes * counts.policy / parts,
        "critic": plan.weight_bytes * counts.critic / parts,
        "reference": plan.reference_bytes * (counts.copied_blocks / parts + whole),
        "moments": 2 * moment * counts.trained / parts,
    }


def _rollout(arch: Architecture, plan: Plan, counts: Counts, *, packs_weights: bool) -> dict[str, float]:
    rows = min(plan.rollout_slots, plan.own_sequences)
    read = min(_PREFILL_TOKENS, plan.own_sequences // plan.samples * plan.prompt_length)
    numbers = 2 * arch.kv_width * ((arch.layers + 1) * rows * plan.length + arch.layers * read)
    if plan.is_never_whole:
        return _rollout_by_blocks(arch, plan, counts, rows)
    gathered = plan.weight_bytes * (counts.policy + counts.critic) if plan.is_sharded else 0
    return {
        "gathered model": gathered,
        "decoder's copies": plan.weight_bytes * copied_weights(arch, plan, packs_weights=packs_weights),
        "key/value cache": plan.weight_bytes * numbers,
        "logits": 2 * 4 * rows * arch.vocabulary,
    }


def _rollout_by_blocks(arch: Architecture, plan: Plan, counts: Counts, rows: int) -> dict[str, float]:
    """A rollout by the model's own forward: all prompts at once, and a cache that is rewritten layer by layer."""
    read = -(-rows // plan.samples) * plan.prompt_length
    return {
        "gathered blocks": plan.weight_bytes * (counts.root + 2 * counts.block),  # one arrives while one is used
        "key/value cache": plan.weight_bytes * 2 * arch.kv_width * (arch.layers + 1) * rows * plan.length,
        "logits": 2 * 4 * rows * arch.vocabulary,
        "activations": _working(arch, replace(plan, precision="float32"), read),
    }


def _reference(arch: Architecture, plan: Plan, counts: Counts) -> dict[str, float]:
    """Passes without gradients: the activations of a few layers, and the casts of trained weights."""
    gathered = _gathered_reference(arch, plan, counts) if plan.is_sharded else 0.0
    tokens = min(plan.reference_batch_tokens, plan.own_sequences * plan.length)
    if plan.asked_again:
        tokens = max(tokens, plan.own_microbatch * plan.length)
    name = "gathered blocks" if plan.is_never_whole else "gathered model"
    return {
        name: gathered,
        "casts": kept_casts(arch, plan) if plan.asked_again else 0.0,
        "activations": _working(arch, plan, tokens),
        "tile of logits": _tile(arch, plan, tokens // plan.length),
    }


def _gathered_reference(arch: Architecture, plan: Plan, counts: Counts) -> float:
    """Bytes of gathered weights at one moment: of the policy, or of the frozen copy after it."""
    if plan.is_never_whole:
        asked = 3 if plan.asked_again else 2 if plan.lora_rank else 0  # training forwards gather one block ahead
        policy = plan.weight_bytes * (counts.root + asked * counts.block) if asked else 0
        return max(policy, plan.reference_bytes * 2 * arch.block_parameters if counts.copied else 0)
    is_asked = bool(plan.asked_again or plan.lora_rank)
    policy = plan.weight_bytes * (counts.policy + counts.critic) if is_asked else 0
    return max(policy, plan.reference_bytes * counts.copied_blocks)


def _update(arch: Architecture, plan: Plan, counts: Counts, gradients: float) -> dict[str, float]:
    """The fullest of three moments: when a forward pass begins, when a backward pass begins, and when it ends."""
    size, tokens = plan.weight_bytes, plan.own_microbatch * plan.length
    trains_output = not plan.lora_rank and plan.train_top_layers is None
    table = size * arch.embedding_parameters if trains_output else 0.0
    is_split = plan.own_microbatch < plan.own_minibatch  # gradients of earlier microbatches are held
    working = {"working memory": _working(arch, plan, tokens)}
    forward = {"gradients": gradients if is_split else 0.0}
    turn = forward | working | {
        "activations": kept_activations(arch, plan, tokens),
        "gradient of the output layer": table,
        "tile of logits": _tile(arch, plan, plan.own_microbatch),
    }  # fmt: skip
    end = {"gradients": gradients} | working
    if plan.is_sharded:
        # Weights outside the blocks are held twice while they arrive. One block is used while the next arrives. The
        # gradients of one block are computed while the last one's are sent. A tied embedding ends with two gradients.
        forward["gathered blocks"] = size * (2 * counts.root + counts.block)
        turn["gathered blocks"] = size * (counts.root + 2 * counts.block)
        turn["gradients of gathered blocks"] = size * 2 * counts.trained_block
        end["gathered blocks"] = size * counts.root
        end["gradients of gathered blocks"] = size * (counts.trained_root + counts.trained_block)
        end["gradient of the output layer"] = table if arch.is_tied else 0.0
    return max(forward, turn, end, key=lambda parts: sum(parts.values()))


def _working(arch: Architecture, plan: Plan, tokens: int) -> float:
    """Bytes of a block's temporary tensors, which are not kept."""
    size = 4 if plan.precision == "float32" else plan.product_bytes
    inner = arch.mlp_width * (3 if arch.is_gated or arch.activation == "gelu_tanh" else 2)
    scores = 0 if arch.has_fused_attention else 3 * arch.heads * plan.length * 4
    return tokens * (4 * 4 * arch.width + size * inner + scores)


def _tile(arch: Architecture, plan: Plan, sequences: int) -> float:
    """Bytes of one tile: logits in float32, their probabilities and gradients."""
    return 3 * 4 * min(_TILE_ROWS, sequences * plan.response_length) * min(_TILE_WIDTH, arch.vocabulary)


def _largest_tensor(arch: Architecture, plan: Plan) -> int:
    if plan.lora_rank:
        return plan.lora_rank * max(max(pair) for pair in arch.linears)
    block = max(inputs * outputs for inputs, outputs in arch.linears)
    return block if plan.train_top_layers is not None else max(block, arch.embedding_parameters)


def host_bytes(arch: Architecture, plan: Plan, device: Device) -> float:
    """Bytes of one node before ``shard``: each of its processes holds the whole policy, critic and frozen copy."""
    counts = count(arch, plan)
    own = plan.weight_bytes * (counts.policy + counts.critic) + plan.reference_bytes * counts.copied
    return min(plan.devices, device.node_size) * own
