"""How much faster a PPO step is in several processes than in one, on the same global batch, one core a process.

    python -m benchmarks.scaling_processes --model lab --prompts 64 --processes 1 2

Every count runs the same steps in processes of its own (torchrun, gloo, one thread each). The counts take turns,
``--repeats`` times. The speed-up is that of the median step. The times of rollout and old policy are process 0's own;
"waiting" is its wait for the slowest process after them. The time of the reference ends when all processes have asked
it, that of the update when its gradients are summed.
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

import torch

import ppo
from benchmarks.machine import write_json
from benchmarks.models import make_model, random_prompts

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("rollout", "old_policy", "waiting", "reference", "update")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="lab", help="as demem.py --model, or random:smollm2, random:small-llama")
    parser.add_argument("--prompts", type=int, default=64, help="sequences in one step, over all processes")
    parser.add_argument("--prompt-length", type=int, default=50, help="tokens")
    parser.add_argument("--response-length", type=int, default=50, help="tokens")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatch", type=int, default=None, help="sequences, over all processes (default: all)")
    parser.add_argument("--sharding", default="none", choices=["none", "fsdp"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed in a run, after one that is not")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each count")
    parser.add_argument("--json", default=None, help="file for the result")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)  # the file that process 0 writes its times to
    options = parser.parse_args()
    if options.worker is not None:
        work(options)
        return
    result = sweep(options)
    show(result)
    write_json(options.json, result | {"options": vars(options)})


def sweep(options: argparse.Namespace) -> dict[str, object]:
    """Seconds of every timed step by part, for each number of processes, and the speed-up over the first number."""
    if max(options.processes) > len(os.sched_getaffinity(0)):
        print(f"only {len(os.sched_getaffinity(0))} cores for {max(options.processes)} processes", file=sys.stderr)
    steps: dict[int, list[dict[str, float]]] = {count: [] for count in options.processes}
    for _ in range(options.repeats):
        for count in options.processes:
            steps[count] += run(options, count)
    medians = {
        count: {part: statistics.median(step[part] for step in taken) for part in (*PARTS, "step")}
        for count, taken in steps.items()
    }
    base = medians[options.processes[0]]
    speedups = {
        count: {part: base[part] / seconds[part] for part in seconds if seconds[part] > 0}
        for count, seconds in medians.items()
    }
    return {"steps": steps, "seconds": medians, "speedups": speedups}


def run(options: argparse.Namespace, count: int) -> list[dict[str, float]]:
    """The timed steps of one run in ``count`` processes."""
    names = ("model", "prompts", "prompt_length", "response_length", "epochs", "steps", "sharding")
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    if options.minibatch is not None:
        arguments.append(f"--minibatch={options.minibatch}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "times.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command = [sys.executable, *launcher, "-m", "benchmarks.scaling_processes", *arguments, "--worker", str(file)]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return list(json.loads(file.read_text(encoding="utf-8")))


def work(options: argparse.Namespace) -> None:
    """The work of one process. Process 0 writes the times to the file."""
    torch.set_num_threads(1)
    with ppo.process_group() as processes:
        trainer = make_trainer(options)
        steps = [take_step(trainer) for _ in range(options.steps + 1)]
        if processes.is_first:
            Path(options.worker).write_text(json.dumps(steps[1:]), encoding="utf-8")


def make_trainer(options: argparse.Namespace) -> ppo.Trainer:
    """A trainer with random prompts, responses of full length, and a reward that costs nothing."""
    model = make_model(options.model)
    prompts = random_prompts(model, options.prompts, options.prompt_length)
    config = ppo.Config(
        prompts_per_step=options.prompts,
        response_length=options.response_length,
        min_response_length=options.response_length,
        epochs=options.epochs,
        minibatch=options.minibatch or options.prompts,
        sharding=options.sharding,
    )
    return ppo.Trainer(model, prompts, lambda samples: [float(len(s.ids)) for s in samples], config)


def take_step(trainer: ppo.Trainer) -> dict[str, float]:
    """Take one step, and return its seconds by part."""
    started = time.perf_counter()
    rollout = trainer.rollout()
    metrics = {**rollout.metrics, **trainer.update(rollout)}
    return {part: metrics[f"time/{part}_s"] for part in PARTS} | {"step": time.perf_counter() - started}


def show(result: dict[str, object]) -> None:
    seconds, speedups = result["seconds"], result["speedups"]
    assert isinstance(seconds, dict)
    assert isinstance(speedups, dict)
    print(f"{'processes':10}" + "".join(f"{part:>20}" for part in (*PARTS, "step")))
    for count, parts in seconds.items():
        cells = [f"{parts[part]:9.3f} s  x{speedups[count].get(part, 1.0):.2f}" for part in (*PARTS, "step")]
        print(f"{count:<10}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
