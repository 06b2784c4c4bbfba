"""How the cost of an update grows with batch, length, vocabulary and width (scaling_processes.py: with processes).

    python -m benchmarks.scaling --json scaling.json
    python -m benchmarks.scaling --only vocabulary,batch --threads 1

One size of a small Llama is doubled several times while the others stay. Every point runs in a process of its own, so
that its peak memory is its own. Two fits describe the points. The first is the slope of log cost over log size, by
least squares; it is 1 where all of the cost grows in proportion. The second, for batch, length and vocabulary, is a
line "fixed + each x size", by least squares of the deviations in percent. The largest deviation is printed with it: a
cost is linear where this is small, however large the fixed part (the optimiser, the libraries).

"beyond weights" is the peak memory without what the process held before the model was made, and without the weights,
gradients and Adam's two moments. Seconds are processor time, summed over threads: another program on the machine
changes it less than it changes wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

import ppo
from benchmarks.machine import peak_memory_bytes, write_json
from benchmarks.models import make_model
from eval.provenance import provenance

BASE = {"batch": 16, "length": 32, "vocabulary": 4096, "width": 128}
POINTS = {
    "batch": (16, 32, 64, 128),
    "length": (16, 32, 64, 128),
    "vocabulary": (4096, 16384, 65536, 262144),
    "width": (64, 128, 256, 512),
}
COSTS = ("seconds", "beyond_weights_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default=",".join(POINTS), help="any of " + ", ".join(POINTS))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--untied", action="store_true", help="output layer with a weight of its own")
    parser.add_argument("--autocast", default="off", choices=["off", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default=None, help="file for the result")
    parser.add_argument("--point", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.point is not None:  # a process of its own, started below
        print(json.dumps(measure(json.loads(options.point), options)))
        return
    if unknown := set(options.only.split(",")) - set(POINTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(POINTS)}")
    machine = provenance()
    print(f"{machine['processor']}, {options.threads} threads, torch {machine['torch']}")
    results = {}
    for name in options.only.split(","):
        points = [run_apart({**BASE, name: size}, options) for size in POINTS[name]]
        results[name] = {"points": points, "slopes": slopes(POINTS[name], points)}
        if name != "width":  # a matrix of twice the width is four times as large
            results[name]["lines"] = {cost: line(POINTS[name], [point[cost] for point in points]) for cost in COSTS}
        show(name, results[name])
    write_json(options.json, {"options": vars(options), "base": BASE, "results": results})


def run_apart(sizes: dict[str, int], options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(sizes)]
    for name in ("layers", "repeats", "autocast", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--untied"] if options.untied else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{sizes} failed:\n{done.stderr[-3000:]}")
    point: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return point


def measure(sizes: dict[str, int], options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of an update of one epoch, its peak memory, and the part of it beyond the weights."""
    before = peak_memory_bytes()
    heads = max(sizes["width"] // 64, 1)
    model = make_model(
        "random:tiny", vocab_size=sizes["vocabulary"], hidden_size=sizes["width"], intermediate_size=3 * sizes["width"],
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=heads,
        tie_word_embeddings=not options.untied,
    )  # fmt: skip
    prompts = torch.randint(1, sizes["vocabulary"], (sizes["batch"], sizes["length"])).tolist()
    config = ppo.Config(
        prompts_per_step=sizes["batch"],
        minibatch=sizes["batch"],
        response_length=sizes["length"],
        epochs=1,
        kl_coef=0.0,
        autocast=options.autocast,
    )
    trainer = ppo.Trainer(model, prompts, lambda samples: [float(sum(s.ids) % 7) for s in samples], config)
    rollout = trainer.rollout()
    seconds = []
    for _ in range(options.repeats + 1):
        started = time.process_time()
        trainer.update(rollout)
        seconds.append(time.process_time() - started)
    weights = sum(p.numel() * p.element_size() for p in trainer.policy.actor.parameters())
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak_bytes": peak_memory_bytes(),
        "beyond_weights_bytes": max(peak_memory_bytes() - before - 4 * weights, 1),
    }


def slopes(sizes: tuple[int, ...], points: list[dict[str, float]]) -> dict[str, float]:
    """Slopes of log cost over log size, by least squares."""
    xs = [math.log(size) for size in sizes]
    mean = statistics.fmean(xs)
    spread = sum((x - mean) ** 2 for x in xs)
    found = {}
    for name in COSTS:
        ys = [math.log(point[name]) for point in points]
        found[name] = sum((x - mean) * y for x, y in zip(xs, ys, strict=True)) / spread
    return found


def line(sizes: tuple[int, ...], costs: list[float]) -> dict[str, float]:
    """Fit cost = fixed + each x size by least squares of relative deviations; and the largest of them (0.05 is 5 %)."""
    rows = torch.tensor([[1 / cost, size / cost] for size, cost in zip(sizes, costs, strict=True)], dtype=torch.float64)
    solution = torch.linalg.lstsq(rows, torch.ones(len(costs), 1, dtype=torch.float64)).solution
    fixed, each = solution.flatten().tolist()
    return {"fixed": fixed, "each": each, "largest_deviation": float((rows @ solution - 1).abs().max())}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name:>10}   seconds   MiB beyond weights")
    for size, point in zip(POINTS[name], result["points"], strict=True):
        print(f"{size:10} {point['seconds']:9.3f} {point['beyond_weights_bytes'] / 2**20:9.0f}")
    print(f"     slope {result['slopes']['seconds']:9.2f} {result['slopes']['beyond_weights_bytes']:9.2f}")
    for cost, unit, factor in (("seconds", "s", 1.0), ("beyond_weights_bytes", "MiB", 2.0**-20)):
        if "lines" in result:
            found = result["lines"][cost]
            print(
                f"{unit:>10} = {factor * found['fixed']:.4g} + {factor * found['each']:.4g} x {name}, "
                f"at most {found['largest_deviation']:.1%} off"
            )


if __name__ == "__main__":
    main()
