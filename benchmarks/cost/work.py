"""The work of one PPO step on one device: rollout (see ``rollout``), old policy and reference, update.

The parts are those of ``ppo.collector`` and ``ppo.trainer``, in their order. A weight costs two operations a row;
attention counts its two products. A backward pass costs two forward passes where weights are trained, and one
where only earlier layers are. Bytes are those of weights, activations and cache between memory and processor.
"""

from __future__ import annotations

from .architecture import Architecture
from .attention import attention_operations, attention_rate
from .block import LAUNCHES, block_traffic
from .device import Rate, Work
from .kept import frozen_layers, kept_activations
from .parameters import Counts, count
from .plan import Plan
from .rollout import rollout_work
from .sending import gather, gather_blocks, sum_gradients, update_gathers

_TILE_SWEEPS = {"forward": 12, "backward": 13}  # of a tile of logits, in ppo.lm.tiled_logprobs
_ADAMW_SWEEPS = 7  # weight, gradient and both moments read; weight and moments written
_CLIP_SWEEPS = 3  # the norm reads gradients, the clipping reads and writes them
_LEAN_SWEEPS = 30  # ppo.optim.lean_adamw works in blocks, operation by operation, in float32

PARTS = ("rollout", "reference", "update")
"""The parts that ``Trainer`` times; "reference" includes the old log-probs and the frozen blocks."""


def step_work(arch: Architecture, plan: Plan, *, packs_weights: bool = False) -> list[Work]:
    """All work of one device in one step. ``packs_weights``: see :class:`Device`."""
    return [
        *rollout_work(arch, plan, packs_weights=packs_weights),
        *reference_work(arch, plan),
        *update_work(arch, plan),
    ]


# ---------------------------------------------------------------------- reference


def reference_work(arch: Architecture, plan: Plan) -> list[Work]:
    """The frozen blocks once, the training forward where old log-probs need it, and the reference."""
    frozen = frozen_layers(arch, plan)
    tokens, rows = plan.own_sequences * plan.length, plan.own_sequences * plan.response_length
    trained = arch.layers - frozen
    work = _forward("reference", "frozen blocks", arch, plan, tokens, layers=frozen, passes=1) if frozen else []
    passes = plan.own_sequences // plan.own_microbatch
    for name in plan.asked_again:
        work += _forward("reference", f"old {name}", arch, plan, tokens, layers=trained, passes=passes)
        if name == "policy":
            work += _output_forward("reference", "old output", arch, plan, rows, is_summed_ahead=False)
        if plan.is_never_whole:
            blocks = plan.weight_bytes * arch.layers * count(arch, plan).block
            work.append(gather_blocks("reference", blocks, plan, passes=passes))
    if plan.reference == "none" and not plan.lora_rank:
        return work
    passes = -(-tokens // plan.reference_batch_tokens)
    asked = "bfloat16" if plan.precision == "float32" and plan.reference_bytes == 2 else plan.precision
    work += _reference_gathers(arch, plan, passes)
    work += _forward("reference", "reference", arch, plan, tokens, layers=trained, passes=passes, precision=asked)
    return work + _output_forward("reference", "reference output", arch, plan, rows, is_summed_ahead=False)


def _reference_gathers(arch: Architecture, plan: Plan, passes: int) -> list[Work]:
    """All-gathers. FSDP2 splits only the blocks of a frozen copy; with an adapter the policy is its own reference."""
    counts = count(arch, plan)
    root = plan.weight_bytes * counts.root if plan.lora_rank else 0
    blocks = plan.weight_bytes * counts.blocks if plan.lora_rank else plan.reference_bytes * counts.copied_blocks
    if not plan.is_never_whole:
        return [gather("reference", root + blocks, plan)]
    return [gather("reference", root, plan), gather_blocks("reference", blocks, plan, passes=passes)]


# ---------------------------------------------------------------------- update


def update_work(arch: Architecture, plan: Plan) -> list[Work]:
    """All epochs: forward, backward, sums over devices, and optimiser."""
    tokens = plan.epochs * plan.own_sequences * plan.length
    rows = plan.epochs * plan.own_sequences * plan.response_length
    passes = plan.epochs * plan.microbatches
    layers = arch.layers - frozen_layers(arch, plan)
    has_frozen_output = bool(plan.lora_rank) or plan.train_top_layers is not None
    work: list[Work] = []
    for name in ("policy", "critic")[: 2 if plan.value_head == "critic" else 1]:
        work += _forward("update", f"forward {name}", arch, plan, tokens, layers=layers, passes=passes, is_trained=True)
        work += _backward(f"backward {name}", arch, plan, tokens, layers=layers, passes=passes)
    work += _output_forward("update", "output forward", arch, plan, rows, is_summed_ahead=has_frozen_output)
    if not has_frozen_output:
        work.append(_output_backward(arch, plan, rows))
    counts = count(arch, plan)
    kept = kept_activations(arch, plan, plan.own_microbatch * plan.length)
    fresh = passes * kept + plan.optimizer_steps * plan.weight_bytes * counts.trained
    work.append(Work("update", "new memory for activations and gradients", fresh=fresh))
    return [*work, *update_gathers(arch, plan, counts), sum_gradients(plan, counts), optimizer_work(plan, counts)]


def optimizer_work(plan: Plan, counts: Counts) -> Work:
    """Clip gradients and move weights, of the trained weights that one device holds."""
    own = counts.trained / (plan.devices if plan.is_sharded else 1)
    is_lean = plan.precision == "bfloat16" or plan.moments == "bfloat16"
    sweeps = _LEAN_SWEEPS if is_lean else _ADAMW_SWEEPS
    moved = own * (4 * sweeps + plan.weight_bytes * _CLIP_SWEEPS)
    return Work("update", "optimiser", moved=plan.optimizer_steps * moved)


# ---------------------------------------------------------------------- passes over the model


def _forward(
    part: str,
    name: str,
    arch: Architecture,
    plan: Plan,
    tokens: int,
    *,
    layers: int,
    passes: int,
    is_trained: bool = False,
    precision: str | None = None,
) -> list[Work]:
    precision = precision or plan.precision
    operations, launches = 2 * tokens * layers * arch.block_linear_weights, LAUNCHES["forward"]
    if is_trained and plan.lora_rank:
        operations += 2 * tokens * layers * adapter_weights(arch, plan)
        launches *= 2
    moved = block_traffic(arch, precision, keys=plan.length).forward * tokens * layers  # type: ignore[arg-type]
    cast = 6 * layers * arch.block_linear_weights * passes if precision == "autocast" else 0
    size = 4 if precision == "float32" else 2
    rate: Rate = "float32" if precision == "float32" else "bfloat16"
    attention = attention_operations(arch, tokens, plan.length, layers)
    return [
        Work(part, name, operations, size * _product_numbers(arch, tokens, layers, passes), rate=rate),
        Work(part, f"{name}, attention", attention, rate=attention_rate(rate)),
        Work(part, f"{name}, beside products", 0, moved + cast, launches=passes * layers * launches),
    ]


def _backward(name: str, arch: Architecture, plan: Plan, tokens: int, *, layers: int, passes: int) -> list[Work]:
    """Gradients of inputs, and of trained weights; with gradient checkpointing one more forward pass."""
    products = 2 * tokens * layers * arch.block_linear_weights
    operations = products if plan.lora_rank else 2 * products
    if plan.lora_rank:
        operations += 4 * tokens * layers * adapter_weights(arch, plan)
    # Each product forward costs two backward; the fused kernel did not keep the scores and computes them again.
    attention = (2.5 if arch.has_fused_attention else 2) * attention_operations(arch, tokens, plan.length, layers)
    traffic = block_traffic(arch, plan.precision, keys=plan.length)
    moved, launches = traffic.backward * tokens * layers, LAUNCHES["backward"]
    if plan.gradient_checkpointing:
        operations += products
        attention += attention_operations(arch, tokens, plan.length, layers)
        moved += traffic.forward * tokens * layers
        launches += LAUNCHES["forward"]
    if not plan.lora_rank:  # gradients are written, cast if products have another type, and summed
        written = 6 if plan.precision == "autocast" else 0
        summed = 3 * plan.weight_bytes if plan.own_microbatch < plan.own_minibatch else 0
        moved += (written + summed) * layers * arch.block_linear_weights * passes
    rate: Rate = "float32" if plan.precision == "float32" else "bfloat16"
    numbers = 2 * _product_numbers(arch, tokens, layers, passes)
    return [
        Work("update", name, operations, plan.product_bytes * numbers, rate=rate),
        Work("update", f"{name}, attention", attention, rate=attention_rate(rate)),
        Work("update", f"{name}, beside products", 0, moved, launches=passes * layers * launches),
    ]


def _output_forward(
    part: str, name: str, arch: Architecture, plan: Plan, rows: int, *, is_summed_ahead: bool
) -> list[Work]:
    """Tiles of logits. With a frozen output layer the same pass sums the gradient of its input."""
    operations = 2 * arch.embedding_parameters * rows * (2 if is_summed_ahead else 1)
    sweeps = 4 * _TILE_SWEEPS["forward"] * arch.vocabulary * rows
    rate: Rate = "float32" if plan.precision == "float32" else "bfloat16"
    return [Work(part, name, operations, rate=rate), Work(part, f"{name}, beside products", moved=sweeps)]


def _output_backward(arch: Architecture, plan: Plan, rows: int) -> Work:
    """Each tile again, then the gradients of rows and of weights; the sweeps are added to the products."""
    sweeps = 4 * _TILE_SWEEPS["backward"] * arch.vocabulary * rows
    rate: Rate = "float32" if plan.precision == "float32" else "bfloat16"
    return Work("update", "output backward", 6 * arch.embedding_parameters * rows, sweeps, rate=rate)


def adapter_weights(arch: Architecture, plan: Plan) -> int:
    """Weights of all adapters of one block."""
    return plan.lora_rank * sum(inputs + outputs for inputs, outputs in arch.linears)


def _product_numbers(arch: Architecture, tokens: int, layers: int, passes: int) -> float:
    """Numbers that linear layers read and write: weights in every pass, inputs and outputs of every token."""
    ends = sum(inputs + outputs for inputs, outputs in arch.linears)
    return layers * (arch.block_linear_weights * passes + ends * tokens)
