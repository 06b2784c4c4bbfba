"""What one PPO step costs, part by part, beside the bare forward and backward passes and beside TRL.

    python -m benchmarks.update --model lab --prompts 64
    python -m benchmarks.update --model random:smollm2 --prompts 16 --repeats 3 \\
        --variants shared,shared-bf16,critic,critic-bf16,lora,trl,trl-bf16 --json update.json

Every variant runs in a process of its own, so that its peak memory is its own. It takes one step that is not counted,
then ``--repeats`` steps, of which the medians are shown. All variants sample the same number of prompts, with responses
of full length, and go over them ``--epochs`` times in one minibatch. The bare loop is forward and backward over the
same tokens in the same microbatches, with whole logits at response positions only, a value head, and no optimiser. The
rate of a plain matrix product is measured in the same process. In "compiled" torch compiles the blocks; the first step
shows what that costs.

A shared trunk (every variant but "critic…" and "trl…") is another algorithm than a separate critic of the policy's
size, which TRL always has. So compare "trl…" with "critic…". "trl" is TRL 1.12's experimental PPO as it comes.
"trl-bf16" sets ACCELERATE_MIXED_PRECISION=bf16, without which TRL's bf16 has no effect. Both need the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ppo
from benchmarks.machine import add_device, peak_memory_bytes, settle, start_memory_bytes, write_json
from benchmarks.models import make_model, random_prompts
from benchmarks.rates import machine_rates
from eval.provenance import provenance
from models.lora import LoraConfig, add_lora, linear_targets
from ppo.buffer import align, microbatches, trim
from ppo.lm.backbone import blocks
from ppo.lm.logprobs import response_positions
from ppo.types import Generation, Rollout

PARTS = ("rollout", "reward", "old_policy", "reference", "update")
VARIANTS: dict[str, dict[str, Any]] = {
    "shared": {},
    "shared-bf16": {"autocast": "bfloat16"},
    "critic": {"value_head": "critic"},
    "critic-bf16": {"value_head": "critic", "autocast": "bfloat16"},
    "lora": {},
    "lora-bf16": {"autocast": "bfloat16"},
    "top": {"train_top_layers": 2},
    "checkpointed": {"gradient_checkpointing": True},
    "pure-bf16": {"moment_dtype": "bfloat16"},
    "compiled": {},
}
TRL_VARIANTS = ("trl", "trl-bf16")


def main() -> None:
    options = read_options()
    if options.variant is not None:  # a process of its own, started below
        Path(options.json).write_text(json.dumps(measure(options)), encoding="utf-8")
        return
    machine = provenance(options.device)
    print(f"{machine['device']}, {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}")
    results = {}
    for variant in options.variants.split(","):
        results[variant] = run_apart(variant, options)
        show(variant, results[variant])
    show_ratios(results)
    write_json(options.json, {"options": vars(options), "results": results}, options.device)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="lab", help="as demem.py --model, or random:smollm2, random:small-llama")
    parser.add_argument("--variants", default="shared", help="any of " + ", ".join([*VARIANTS, *TRL_VARIANTS]))
    parser.add_argument("--prompts", type=int, default=64, help="sequences in one step")
    parser.add_argument("--prompt-length", type=int, default=50, help="tokens")
    parser.add_argument("--response-length", type=int, default=50, help="tokens")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--microbatch", type=int, default=None, help="sequences (default: all at once)")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed, after one that is not")
    parser.add_argument("--json", default=None, help="file for the result")
    parser.add_argument("--variant", default=None, help=argparse.SUPPRESS)
    add_device(parser)
    options = parser.parse_args()
    unknown = set(options.variants.split(",")) - {*VARIANTS, *TRL_VARIANTS}
    if unknown:
        parser.error(
            f"unknown variants: {', '.join(sorted(unknown))}; choose from {', '.join(VARIANTS)}, trl, trl-bf16"
        )
    if any(name in options.variants for name in TRL_VARIANTS) and options.device.type != "cpu":
        parser.error("TRL's own choice of a device is not measured: --device cpu")
    if any(name in options.variants for name in TRL_VARIANTS) and not options.model.startswith("random:"):
        parser.error("TRL is measured on an untrained model: --model random:smollm2 or random:small-llama")
    return options


def run_apart(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one variant in a process of its own. SystemExit with the end of its stderr if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        module = "benchmarks.trl_step" if variant in TRL_VARIANTS else "benchmarks.update"
        names = ("model", "prompts", "prompt_length", "response_length", "epochs", "repeats")
        names += () if variant in TRL_VARIANTS else ("microbatch", "lora_rank", "device")
        command = [sys.executable, "-m", module, "--json", str(file)]
        for name in names:
            if getattr(options, name) is not None:
                command += ["--" + name.replace("_", "-"), str(getattr(options, name))]
        command += [] if variant in TRL_VARIANTS else ["--variant", variant]
        environment = os.environ | ({"ACCELERATE_MIXED_PRECISION": "bf16"} if variant == "trl-bf16" else {})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every part of ``options.repeats`` steps, the bare loop, and the machine's own rates."""
    start = start_memory_bytes(options.device)
    trainer = make_trainer(options)
    times: dict[str, list[float]] = {part: [] for part in (*PARTS, "step")}
    for repeat in range(options.repeats + 1):
        started = time.perf_counter()
        rollout = trainer.rollout()
        metrics = {**rollout.metrics, **trainer.update(rollout)}
        settle()
        seconds = time.perf_counter() - started
        if repeat == 0:
            first = seconds
        else:
            times["step"].append(seconds)
            for part in PARTS:
                times[part].append(metrics[f"time/{part}_s"])
    peak = peak_memory_bytes(options.device)  # before the bare loop, which keeps whole logits
    times["bare"] = [options.epochs * bare_pass(trainer, rollout) for _ in range(options.repeats)]
    result = summarise(times, trainer, rollout, options) | {"peak_memory_bytes": peak, "start_memory_bytes": start}
    return result | {"first_step_seconds": first}


def make_trainer(options: argparse.Namespace) -> ppo.Trainer:
    """A trainer with random prompts and a reward that costs nothing, so that the time is PPO's."""
    model = make_model(options.model, torch.bfloat16 if options.variant == "pure-bf16" else torch.float32)
    model.to(options.device)
    if options.variant.startswith("lora"):
        add_lora(model, LoraConfig(linear_targets(model), rank=options.lora_rank))
    prompts = random_prompts(model, options.prompts, options.prompt_length)
    config = ppo.Config(
        prompts_per_step=options.prompts,
        response_length=options.response_length,
        min_response_length=options.response_length,
        epochs=options.epochs,
        minibatch=options.prompts,
        microbatch=options.microbatch,
    ).replace(**VARIANTS[options.variant])
    trainer = ppo.Trainer(model, prompts, lambda samples: [float(sum(s.ids) % 7) for s in samples], config)
    if options.variant == "compiled":
        for block in blocks(trainer.model):
            block.compile(dynamic=False)  # once for every shape
    return trainer


def bare_pass(trainer: ppo.Trainer, rollout: Rollout) -> float:
    """Seconds of one forward and backward pass over the rollout's tokens, in the update's own microbatches."""
    generation = rollout.generation
    settle()
    started = time.perf_counter()
    for indices in microbatches(generation.attention_mask, size=trainer.config.microbatch):
        with trainer.policy.precision():
            loss = bare_loss(trainer, trim(generation.rows(indices)))
        loss.backward()  # type: ignore[no-untyped-call]
    trainer.learner.optimizer.zero_grad()
    settle()
    return time.perf_counter() - started


def bare_loss(trainer: ppo.Trainer, generation: Generation) -> Tensor:
    """The loss of a plain loop: cross-entropy of the responses from whole logits, and the mean of their values."""
    actor, aligned, length = trainer.policy.actor, align(generation), generation.tokens.shape[1]
    features = actor.backbone(aligned.input_ids, aligned.attention_mask)
    rows = response_positions(features.before_logits, aligned.prompt_lengths, length)
    logits = actor.backbone.output_layer(rows[generation.mask]).float()
    hidden = features.hidden
    if actor.critic_backbone is not None:
        hidden = actor.critic_backbone(aligned.input_ids, aligned.attention_mask).hidden
    assert actor.value_head is not None
    values = actor.value_head(response_positions(hidden, aligned.prompt_lengths, length))
    return F.cross_entropy(logits, generation.tokens[generation.mask]) + values.mean()


def summarise(
    times: dict[str, list[float]], trainer: ppo.Trainer, rollout: Rollout, options: argparse.Namespace
) -> dict[str, Any]:
    """Medians in seconds, rates in response tokens per second, floating-point operations per second."""
    medians = {part: statistics.median(values) for part, values in times.items()}
    tokens = int(rollout.generation.mask.sum())
    rates = machine_rates(*shapes_of_products(trainer, options), options.device)
    rate = rates[f"{'bfloat16' if is_half(trainer) else 'float32'}_operations_per_second"]
    done = options.epochs * model_operations(trainer, rollout)
    return {
        "seconds": times,
        "median_seconds": medians,
        "tokens_per_second": tokens / medians["step"],
        "update_tokens_per_second": tokens * options.epochs / medians["update"],
        "update_share_of_bare": medians["bare"] / medians["update"],
        "product_operations_per_second": rate,
        "rates": rates,
        "update_utilisation": done / medians["update"] / rate,
    }


def model_operations(trainer: ppo.Trainer, rollout: Rollout) -> float:
    """Of the matrix products of one epoch: 2 per weight and token forward, 2 for inputs, 2 for weights if trained.

    The output layer computes response positions only, the blocks compute all. The count leaves out attention itself,
    recomputation, and what the update does not compute: frozen blocks, and the output layer of a separate critic.
    """
    generation, actor = rollout.generation, trainer.policy.actor
    output = trainer.model.get_output_embeddings().weight
    depth = actor.frozen_blocks.depth if actor.frozen_blocks is not None else 0
    idle = {id(p) for block in blocks(trainer.model)[:depth] for p in block.parameters()} | {id(output)}
    if actor.critic_backbone is not None:
        idle.add(id(actor.critic_backbone.model.get_output_embeddings().weight))
    total = 0.0
    for name, parameter in actor.named_parameters():
        if parameter.dim() != 2 or id(parameter) in idle or "embed" in name or "wte" in name or "wpe" in name:
            continue
        total += (6 if parameter.requires_grad else 4) * parameter.numel() * int(generation.attention_mask.sum())
    return total + (6 if output.requires_grad else 4) * output.numel() * int(generation.mask.sum())


def shapes_of_products(
    trainer: ppo.Trainer, options: argparse.Namespace
) -> tuple[tuple[int, int, int], tuple[int, int, int, int]]:
    """Two shapes of the update: rows, inputs and outputs of a block's largest linear layer; and sequences, heads,
    tokens and head width of its attention.
    """
    sequences, length = options.microbatch or options.prompts, options.prompt_length + options.response_length
    weight = max((p for p in blocks(trainer.model)[0].parameters() if p.dim() == 2), key=lambda p: p.numel())
    config = trainer.model.config
    heads = config.num_attention_heads  # transformers' name for it in every family
    return (
        (sequences * length, weight.shape[1], weight.shape[0]),
        (sequences, heads, length, config.hidden_size // heads),
    )


def is_half(trainer: ppo.Trainer) -> bool:
    """Whether the variant's matrix products are in bfloat16."""
    return trainer.config.autocast == "bfloat16" or next(trainer.model.parameters()).dtype == torch.bfloat16


def show(variant: str, result: dict[str, Any]) -> None:
    print(f"\n{variant}")
    for part, value in result["median_seconds"].items():
        print(f"  {part:10} {value:8.3f} s" + ("   (forward + backward alone, same tokens)" if part == "bare" else ""))
    print(f"  {result['tokens_per_second']:.0f} response tokens/s, peak {result['peak_memory_bytes'] / 2**30:.2f} GiB")
    if "first_step_seconds" in result:
        print(f"  first step {result['first_step_seconds']:.1f} s, not counted")
    if "update_share_of_bare" in result:
        print(
            f"  update: {result['update_tokens_per_second']:.0f} tokens/s, {result['update_share_of_bare']:.2f} of the "
            f"bare loop's rate, {result['update_utilisation']:.0%} of "
            f"{result['product_operations_per_second'] / 1e9:.0f} GFLOP/s"
        )


def show_ratios(results: dict[str, dict[str, Any]]) -> None:
    """Print every variant's time and memory of a step as multiples of every baseline that was measured."""
    for base in [name for name in ("shared", *TRL_VARIANTS) if name in results]:
        for name, result in results.items():
            if name != base:
                time_ratio = result["median_seconds"]["step"] / results[base]["median_seconds"]["step"]
                memory_ratio = result["peak_memory_bytes"] / results[base]["peak_memory_bytes"]
                print(f"{name} / {base}: {time_ratio:.2f} of the time, {memory_ratio:.2f} of the memory")


if __name__ == "__main__":
    main()
