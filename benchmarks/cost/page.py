"""docs/scale.md: the cost model's answers for the sizes that people ask about, written by the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .architecture import KNOWN, Architecture
from .check import Check
from .device import H100
from .estimate import Estimate, estimate, remedies
from .memory import PHASES
from .page_check import beside_measurements
from .plan import Plan
from .rollout import PROBES

_MODELS = ("gpt-neo-1.3b", "gpt-neo-2.7b", "opt-1.3b", "llama-3.1-70b")
_PROMPTS, _MINIBATCH, _EPOCHS = 32, 8, 8  # on each GPU; the paper's batch, minibatch and epochs
_LAYOUTS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (8, {}),
    (8, {"sharding": "fsdp"}),
    (64, {}),
    (64, {"sharding": "fsdp"}),
    (8, {"value_head": "critic"}),
    (8, {"value_head": "critic", "sharding": "fsdp"}),
    (8, {"lora_rank": 16}),
)


BY_BLOCKS: dict[str, Any] = {"sharding": "fsdp", "gather_for_rollouts": False, "gradient_checkpointing": True}
_IN_SHORT: tuple[tuple[str, tuple[tuple[int, dict[str, Any]], ...]], ...] = (
    ("gpt-neo-1.3b", _LAYOUTS[:5]),
    ("gpt-neo-2.7b", _LAYOUTS[:5]),
    ("llama-3.1-70b", (
        *_LAYOUTS[:5], (8, {**BY_BLOCKS, "lora_rank": 16}), (64, {**BY_BLOCKS, "precision": "float32"})
    )),
)  # fmt: skip


def page(checks: Sequence[Check] = ()) -> str:
    """The whole page, as Markdown. ``checks`` puts the comparison with measurements into it."""
    parts = [_introduction(), _in_short(), _assumptions(), beside_measurements(checks)]
    for name in _MODELS:
        parts.append(_model(KNOWN[name]))
    return "\n\n".join(parts) + "\n"


def plan_for(devices: int, changes: Mapping[str, Any]) -> Plan:
    """The page's step, with as much work on every GPU however many there are."""
    plan = {
        "prompts": _PROMPTS * devices, "minibatch": _MINIBATCH * devices, "epochs": _EPOCHS, "precision": "autocast",
        "devices": devices,
    }  # fmt: skip
    return Plan(**{**plan, **changes})


def _introduction() -> str:
    return f"""# What one PPO step costs at scale

**Computed, never run.** No model of these sizes and no GPU was touched: every number comes out of
`python -m benchmarks.cost_model`, which counts what this library's code does from the shapes of a model. This page is
its output too, do not edit it by hand:
`python -m benchmarks.cost_model --check results/speed/update*.json --page docs/scale.md`.

The step: on every GPU {_PROMPTS} prompts of 50 tokens, 50 response tokens to each, {_EPOCHS} epochs in minibatches
of {_MINIBATCH} (DeMem's published batch, minibatch and epochs, on each GPU), bfloat16 autocast over float32 weights,
a linear value head and a frozen float32 copy as the reference, unless a row says otherwise."""


def _in_short() -> str:
    lines = [
        "| model | GPUs | | peak memory | TFLOP | GB moved in its memory | GB sent | step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, layouts in _IN_SHORT:
        for devices, changes in layouts:
            one = estimate(KNOWN[name], plan_for(devices, changes), H100)
            verdict = f"{one.seconds():,.1f} s" if one.fits else "**does not fit**"
            cells = [
                name, str(devices), label(one.plan), f"{one.memory.peak / 1e9:,.1f} GB",
                f"{one.operations / 1e12:,.0f}", f"{one.moved / 1e9:,.0f}", f"{one.sent / 1e9:,.0f}", verdict,
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return f"""## In short

One step; figures are those of one GPU, which has {H100.memory / 1e9:.0f} GB. All layouts, phases and parts follow
further down.

{chr(10).join(lines)}"""


def _assumptions() -> str:
    return f"""## Assumptions

- {H100.source}. None of these shares was measured here.
- A piece of work takes the longest of arithmetic, memory and kernel launches, one piece after another; nothing is sent
  while something is computed. Collective operations move the bytes of a ring, at one rate.
- Beside matrix products a block sweeps its activations through memory as often as transformers' eager code does: it is
  not compiled or fused. GPT-Neo stores its attention scores; OPT and Llama use the fused kernel.
- Rollouts run in the precision of the weights, float32 here, whatever `autocast` says, and each FSDP2 process gathers
  the whole model for them; so does the reference. The fast decoder holds a copy of what it joins (query, key and value;
  gate and up), under LoRA of every adapted weight.
- Rollouts block by block (`gather_for_rollouts=False`) go through the model's own forward. What lies outside the blocks
  is whole there, and one block, beside the buffer that it arrived in; the reference is asked in the same way. Of a
  frozen copy only the blocks are split. Every process needs equally many forwards, and their agreement before each of
  them costs nothing.
- In an update FSDP2 holds what lies outside the blocks, twice while it arrives, and two blocks, beside the gradients of
  those trained weights that are gathered: the output layer's, two blocks', and at the end all that lie outside.
- Under autocast PyTorch keeps a bfloat16 cast of every trained weight for the length of a forward pass, and FSDP2 does
  not split those.
- All responses have their full length, no prompt repeats, the reward costs nothing, saving and evaluating are left out.
- {H100.reserved / 1e9:.0f} GB of each GPU are taken by CUDA, NCCL and fragmentation. GB are 10⁹ bytes."""


def _model(arch: Architecture) -> str:
    found = [estimate(arch, plan_for(devices, changes), H100) for devices, changes in _LAYOUTS]
    changed = [remedies(arch, one.plan, H100) for one in found if not one.fits]
    by_blocks = {one.plan: one for _, one in changed if one.fits and one.plan.is_never_whole}
    return f"""## {arch.name}: {arch.parameters / 1e9:.2f} billion parameters

Per GPU: operations, bytes of its memory moved, bytes sent, memory in each phase, seconds; of all GPUs together:
response tokens a second. **Bold** memory does not fit {H100.memory / 1e9:.0f} GB; the seconds of such a row are those
of a GPU that had the room.

{_costs([*found, *by_blocks.values()])}

{_advice(found, changed, list(by_blocks.values()))}"""


def _costs(found: list[Estimate]) -> str:
    head = "| GPUs | | TFLOP | GB moved | GB sent | " + " | ".join(f"GB {phase}" for phase in PHASES)
    head += " | rollout s | reference s | update s | of the step sending | step s | tokens/s |"
    lines = [head, "|---" * 14 + "|"]
    for one in found:
        plan, times = one.plan, one.seconds_by_part()
        memory = [f"{one.memory.total(phase) / 1e9:.1f}" for phase in PHASES]
        limit = one.device.memory
        memory = [f"**{x}**" if one.memory.total(p) > limit else x for p, x in zip(PHASES, memory, strict=True)]
        cells = [
            str(plan.devices), label(plan), f"{one.operations / 1e12:,.0f}", f"{one.moved / 1e9:,.0f}",
            f"{one.sent / 1e9:,.0f}", *memory, *[f"{times[part]:.2f}" for part in ("rollout", "reference", "update")],
            f"{one.sending_seconds() / times['step']:.0%}", f"{times['step']:.2f}",
            f"{plan.prompts * plan.samples * plan.response_length / times['step']:,.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def label(plan: Plan) -> str:
    """How a plan differs from the page's own."""
    words = ["one GPU" if plan.devices == 1 else "FSDP2" if plan.is_sharded else "DDP"]
    words += ["separate critic"] if plan.value_head == "critic" else []
    words += [f"LoRA {plan.lora_rank}"] if plan.lora_rank else []
    words += ["rollouts block by block"] if plan.is_never_whole else []
    words += ["float32"] if plan.precision == "float32" else []
    words += ["bfloat16 reference"] if plan.reference == "copy-bfloat16" else []
    words += ["checkpointing"] if plan.gradient_checkpointing else []
    words += [f"microbatch {plan.microbatch}"] if plan.microbatch else []
    return ", ".join(words)


def _advice(found: list[Estimate], changed: list[tuple[list[str], Estimate]], by_blocks: list[Estimate]) -> str:
    """What does not fit, why, and what makes it fit; or the least that the library can be brought to."""
    full = [one for one in found if not one.fits]
    if not full:
        return "Everything fits."
    lines = [f"- {_reason(one)} {_remedy(*pair)}" for one, pair in zip(full, changed, strict=True)]
    lines += ["", _by_blocks(by_blocks)] if by_blocks else []
    return "\n".join(["What does not fit:", "", *lines])


def _reason(one: Estimate) -> str:
    full = [phase for phase in PHASES if one.memory.total(phase) > one.device.memory]
    parts = one.memory.phases[one.memory.fullest]
    largest = sorted(parts, key=lambda name: -parts[name])[:3]
    listed = ", ".join(f"{name} {parts[name] / 1e9:.0f} GB" for name in largest)
    where = label(one.plan) if one.plan.devices == 1 else f"{one.plan.devices} GPUs, {label(one.plan)}"
    return f"{where}: {', '.join(full)}; in the {one.memory.fullest}: {listed}."


def _remedy(names: list[str], changed: Estimate) -> str:
    return (
        f"It fits with {' and '.join(names)}: {changed.memory.peak / 1e9:.1f} GB, {changed.seconds():.2f} s a step."
        if changed.fits
        else f"Nothing that the library can be told makes it fit: {changed.memory.peak / 1e9:.0f} GB at the least."
    )


def _by_blocks(changed: list[Estimate]) -> str:
    """For a model that fits only where it is never whole: what that costs, and what stays in the way."""
    lines = [
        "**It fits only where no GPU ever holds it whole** (`gather_for_rollouts=False`), on paper. Each token of a",
        f"rollout then gathers every block, and so do {PROBES} forwards before it that look where it can be cut:",
        "",
    ]
    for one in changed:
        whole = estimate(one.arch, replace(one.plan, gather_for_rollouts=True), one.device)
        sent = sum(piece.sent for piece in one.work if piece.part == "rollout")
        lines.append(
            f"- {one.plan.devices} GPUs, {label(one.plan)}: {sent / 1e12:.1f} TB sent in a rollout of "
            f"{one.seconds('rollout'):.0f} s. With the whole model on every GPU it would take "
            f"{whole.seconds('rollout'):.0f} s and {whole.memory.total('rollout') / 1e9:.0f} GB. The host memory of a "
            f"node of {one.device.node_size} has to hold {one.host_bytes / 1e12:.1f} TB before the weights are split: "
            "every process loads the whole model."
        )
    return "\n".join(lines)
