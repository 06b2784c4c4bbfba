"""What one PPO step costs, part by part, beside the bare forward and backward passes that it cannot do without.

    python -m benchmarks.update --model lab --prompts 64 --repeats 3

Prints the median seconds of rollout, reward, reference and update, response tokens per second, the update's share of
the bare loop's speed, and the peak memory. The bare loop is a forward and backward pass over the same padded tokens
with logits at response positions only and no optimiser.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

import ppo
from benchmarks.machine import peak_memory_bytes, write_json
from eval.provenance import provenance
from models.load import load
from ppo.backbone import Backbone, vocabulary_size
from ppo.logprobs import response_positions
from ppo.types import Rollout

PARTS = ("rollout", "reward", "reference", "update")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="lab", help="as demem.py --model")
    parser.add_argument("--prompts", type=int, default=64, help="sequences in one step")
    parser.add_argument("--prompt-length", type=int, default=50, help="tokens")
    parser.add_argument("--response-length", type=int, default=50, help="tokens")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatch", type=int, default=None, help="sequences (default: all)")
    parser.add_argument("--value-head", default="linear", choices=["linear", "mlp", "critic"])
    parser.add_argument("--autocast", default="off", choices=["off", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed, after one that is not")
    parser.add_argument("--json", default=None, help="file for the result")
    options = parser.parse_args()

    trainer = make_trainer(options)
    times: dict[str, list[float]] = {part: [] for part in (*PARTS, "bare")}
    rollout = trainer.rollout()
    trainer.update(rollout)
    for _ in range(options.repeats):
        rollout = trainer.rollout()
        metrics = {**rollout.metrics, **trainer.update(rollout)}
        for part in PARTS:
            times[part].append(metrics[f"time/{part}_s"])
        times["bare"].append(options.epochs * bare_pass(trainer, rollout, options.autocast))
    result = summarise(times, rollout)
    result["options"] = vars(options)
    show(result)
    write_json(options.json, result)


def make_trainer(options: argparse.Namespace) -> ppo.Trainer:
    """Random prompts, and a reward that costs nothing, so that the time is PPO's."""
    model = load(options.model).model
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, vocabulary_size(model), (options.prompts, options.prompt_length), generator=generator)
    config = ppo.Config(
        prompts_per_step=options.prompts,
        response_length=options.response_length,
        min_response_length=options.response_length,
        epochs=options.epochs,
        minibatch=options.minibatch or options.prompts,
        value_head=options.value_head,
        autocast=options.autocast,
    )
    return ppo.Trainer(model, prompts.tolist(), lambda samples: [float(len(s.ids)) for s in samples], config)


def bare_pass(trainer: ppo.Trainer, rollout: Rollout, autocast: str) -> float:
    """Seconds of one forward and backward pass over the rollout's tokens."""
    generation, backbone = rollout.generation, Backbone(trainer.model)
    started = time.perf_counter()
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=autocast == "bfloat16"):
        features = backbone(generation.input_ids, generation.attention_mask)
        rows = response_positions(features.before_logits, generation.prompt_length)[generation.mask]
        loss = F.cross_entropy(backbone.output_layer(rows).float(), generation.tokens[generation.mask])
    loss.backward()
    trainer.optimizer.zero_grad()
    return time.perf_counter() - started


def summarise(times: dict[str, list[float]], rollout: Rollout) -> dict[str, object]:
    """Medians in seconds, rates in response tokens per second, memory in bytes."""
    medians = {part: statistics.median(values) for part, values in times.items()}
    tokens = int(rollout.generation.mask.sum())
    step = sum(medians[part] for part in PARTS)
    return {
        "seconds": medians,
        "seconds_per_step": step,
        "tokens_per_second": tokens / step,
        "rollout_tokens_per_second": tokens / medians["rollout"],
        "update_share_of_bare": medians["bare"] / medians["update"],
        "peak_memory_bytes": peak_memory_bytes(),
    }


def show(result: dict[str, object]) -> None:
    machine = provenance()
    print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}")
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    for part, value in seconds.items():
        print(f"{part:10} {value:8.3f} s" + ("   (forward + backward alone, same tokens)" if part == "bare" else ""))
    print(f"a step takes {result['seconds_per_step']:.3f} s: {result['tokens_per_second']:.0f} response tokens/s")
    print(f"the update runs at {result['update_share_of_bare']:.2f} of the bare loop's speed")
    print(f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB")  # type: ignore[operator]


if __name__ == "__main__":
    main()
