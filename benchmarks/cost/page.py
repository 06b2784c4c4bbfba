"""docs/scale.md: the cost of a step for the sizes that people ask about, written by the cost model itself."""

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
    """The whole page, as Markdown. With ``checks`` it has the comparison with measurements."""
    parts = [_introduction(), _in_short(), _assumptions(), beside_measurements(checks)]
    for name in _MODELS:
        parts.append(_model(KNOWN[name]))
    return "\n\n".join(parts) + "\n"


def plan_for(devices: int, changes: Mapping[str, Any]) -> Plan:
    """The page's step, with the same work on every GPU for any number of them."""
    plan = {
        "prompts": _PROMPTS * devices, "minibatch": _MINIBATCH * devices, "epochs": _EPOCHS, "precision": "autocast",
        "devices": devices,
    }  # fmt: skip
    return Plan(**{**plan, **changes})


def _introduction() -> str:
    return f"""# What one PPO step costs at scale

**Computed, never run.** No model of these sizes and no GPU was used. Every number comes from
`python -m benchmarks.cost_model`, which counts what this library's code does with a model of these shapes. The same
program writes this page; do not edit it by hand:
`python -m benchmarks.cost_model --check results/speed/update*.json --page docs/scale.md`.

The step: every GPU has {_PROMPTS} prompts of 50 tokens, 50 response tokens for each, and {_EPOCHS} epochs in
minibatches of {_MINIBATCH} (DeMem's published batch, minibatch and epochs, on each GPU). It computes in bfloat16
autocast over float32 weights, with a linear value head and a frozen float32 copy as the reference, unless a row says
otherwise."""


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

The figures are those of one step and one GPU, which has {H100.memory / 1e9:.0f} GB. All layouts, phases and parts
follow below.

{chr(10).join(lines)}"""


def _assumptions() -> str:
    return f"""## Assumptions

- {H100.source}. None of these shares was measured here.
- Pieces of work follow one another. Each takes as long as the slowest of its arithmetic, memory and kernel launches.
  Nothing is sent while something is computed. Collective operations move the bytes of a ring, at one rate.
- Beside matrix products a block sweeps its activations through memory as often as transformers' eager code does: it is
  neither compiled nor fused. GPT-Neo stores its attention scores; OPT and Llama use the fused kernel.
- Rollouts run in the precision of the weights (float32 here), whatever `autocast` says. Each FSDP2 process gathers the
  whole model for them, and for the reference, too. The fast decoder holds a copy of the weights that it joins (query,
  key and value; gate and up); under LoRA, of every adapted weight.
- Rollouts block by block (`gather_for_rollouts=False`) go through the model's own forward. A GPU then holds all weights
  outside the blocks, one block, and the buffer in which the next block arrives. The reference is asked in the same way.
  FSDP2 splits only the blocks of a frozen copy. Every process needs the same number of forwards; agreeing on each of
  them costs nothing.
- In an update FSDP2 holds the weights outside the blocks (twice while they arrive) and two blocks. Beside them it holds
  the gradients of gathered trained weights: those of the output layer, of two blocks, and at the end of all weights
  outside the blocks.
- Under autocast PyTorch keeps a bfloat16 cast of every trained weight during a forward pass. FSDP2 does not split the
  casts.
- All responses have their full length, no prompt repeats, the reward costs nothing, and saving and evaluating are not
  counted.
- CUDA, NCCL and fragmentation take {H100.reserved / 1e9:.0f} GB of each GPU. GB are 10⁹ bytes."""


def _model(arch: Architecture) -> str:
    found = [estimate(arch, plan_for(devices, changes), H100) for devices, changes in _LAYOUTS]
    changed = [remedies(arch, one.plan, H100) for one in found if not one.fits]
    by_blocks = {one.plan: one for _, one in changed if one.fits and one.plan.is_never_whole}
    return f"""## {arch.name}: {arch.parameters / 1e9:.2f} billion parameters

The columns show, for each GPU: operations, bytes of its memory moved, bytes sent, memory in each phase, and seconds;
for all GPUs together: response tokens a second. **Bold** memory does not fit into {H100.memory / 1e9:.0f} GB; the
seconds of such a row are those of a GPU with enough memory.

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
    """The words for what differs from the page's own step."""
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
    """What does not fit, why, and what makes it fit; or the smallest memory that any setting reaches."""
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
        else f"No setting of the library makes it fit: the smallest peak is {changed.memory.peak / 1e9:.0f} GB."
    )


def _by_blocks(changed: list[Estimate]) -> str:
    """For a model that fits only where no GPU ever holds it whole: what that costs, and what host memory it needs."""
    lines = [
        "**It fits, on paper, only where no GPU ever holds it whole** (`gather_for_rollouts=False`). Each token of a",
        f"rollout then gathers every block, and so do the {PROBES} forwards before it that find where it can be cut:",
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
