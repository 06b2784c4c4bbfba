"""What autograd keeps from the forward to the backward pass."""

from __future__ import annotations

from .architecture import Architecture
from .block import block_traffic
from .plan import Plan


def frozen_layers(arch: Architecture, plan: Plan) -> int:
    """Leading blocks that no training reaches."""
    return 0 if plan.train_top_layers is None else max(arch.layers - plan.train_top_layers, 0)


def kept_activations(arch: Architecture, plan: Plan, tokens: int) -> float:
    """Bytes kept from the forward to the backward pass of one microbatch, with the casts of weights under autocast."""
    layers = arch.layers - frozen_layers(arch, plan)
    models = 2 if plan.value_head == "critic" else 1
    stream = 2 if plan.precision == "bfloat16" else 4
    block = block_traffic(arch, plan.precision, keys=plan.length).kept
    if plan.lora_rank:  # adapters read float32, and their low-rank products are kept
        block += adapter_activations(arch, plan)
    cast = 2 * arch.block_linear_weights if plan.precision == "autocast" else 0
    if plan.gradient_checkpointing:
        kept = tokens * (layers * stream * arch.width + block)
        casts = cast * (1 if plan.lora_rank else layers)  # autocast keeps casts of trained weights until it ends
    else:
        kept, casts = tokens * layers * block, cast * layers
    return models * (kept + casts + tokens * stream * arch.width)


def kept_casts(arch: Architecture, plan: Plan) -> float:
    """Bytes of the casts of trained weights that autocast keeps during a forward pass, without gradients as well."""
    models = 2 if plan.value_head == "critic" else 1
    layers = 0 if plan.lora_rank or plan.precision != "autocast" else arch.layers - frozen_layers(arch, plan)
    return 2 * models * layers * arch.block_linear_weights


def adapter_activations(arch: Architecture, plan: Plan) -> float:
    """Bytes a token and block that adapters add: their low-rank products, and casts of their inputs to float32."""
    size = 2 if plan.precision == "autocast" else 4
    casts = sum(inputs for inputs, _ in arch.linears) * (4 if plan.precision != "float32" else 0)
    # An RMS norm keeps its scaled input for the gradient of its weight, which is frozen here.
    scaled = 2 * (2 if plan.precision == "bfloat16" else 4) * arch.width if arch.norm == "rms" else 0
    return size * plan.lora_rank * len(arch.linears) + casts - scaled
