"""Whether memory stays flat over many PPO steps of the lab's model: resident memory against steps, and its slope.

    python -m benchmarks.soak --out /tmp/soak --steps 2000 --minutes 14

A run that was stopped (also by ``--minutes``) goes on in the same folder. Each start is a process with a memory level
of its own, so one slope is fitted through the deviations from each start's mean, without its first ``--settle`` steps.
The interval is one of 95 %. Blocks of steps count as one point each, since neighbouring readings of memory are nearly
equal. The program also counts the tensors and other objects that Python keeps: with a leak their number grows long
before megabytes do.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import ppo
from benchmarks.machine import add_device, resident_bytes, write_json
from models.load import load
from ppo.checkpoint import list_checkpoints
from ppo.log import read_jsonl

PROMPTS = [
    "The statement",
    "A class",
    "If the argument",
    "This module",
    "Return the",
    "When a",
    "The name",
    "An object",
]
RETAIN = ["The value of the expression is evaluated when the statement is executed, and the result is bound to a name."]
CONFIG = ppo.Config(
    prompts_per_step=16, minibatch=16, microbatch=8, response_length=24, epochs=2, learning_rate=2e-5,
    retain_coef=0.5, retain_loss="kl", retain_sequences=2, retain_tokens=24, save_every_steps=100,
)  # fmt: skip
_BLOCK = 25  # steps in one point of the fit


def main() -> None:
    options = read_options()
    trainer, start = make_trainer(options.out, options.device)
    deadline = time.monotonic() + 60 * options.minutes
    readings = options.out / "memory.jsonl"

    def read(t: ppo.Trainer) -> dict[str, float]:
        gc.collect()
        objects = gc.get_objects()
        row = {
            "memory/resident_mib": resident_bytes() / 2**20,
            "memory/tensors": float(sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in objects)),
            "memory/objects": float(len(objects)),
        }
        with readings.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"start": start, "step": t.step, **row}) + "\n")
        return row

    trainer.train(
        max(options.steps - trainer.step, 0),
        probe=read,
        stop_when=lambda _: time.monotonic() > deadline,
        progress=False,
    )
    if trainer.last_checkpoint is None or not trainer.last_checkpoint.name.endswith(f"{trainer.step:06d}"):
        trainer.save_numbered()
    result = summary(read_jsonl(readings), settle=options.settle)
    print(f"{trainer.step} steps; " + "; ".join(f"{name} {value:.5g}" for name, value in result.items()))
    write_json(options.json, {"steps": trainer.step, "settle": options.settle, **result}, options.device)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a run that is in it goes on")
    parser.add_argument("--steps", type=int, default=2000, help="of all starts together")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this start")
    parser.add_argument("--settle", type=int, default=50, help="steps of each start that the fit leaves out")
    parser.add_argument("--json", default=None, help="file for the result")
    add_device(parser)
    return parser.parse_args()


def make_trainer(out: Path, device: torch.device) -> tuple[ppo.Trainer, int]:
    """A new run, or the one that is in the folder; and the step with which this start begins."""
    lab = load("lab")
    if list_checkpoints(out / "checkpoints"):
        trainer = ppo.Trainer.resume(out, PROMPTS, reward, retain=RETAIN, out=out, device=device)
    else:
        more = {"tokenizer": lab.tokenizer, "retain": RETAIN, "out": out, "device": device}
        trainer = ppo.Trainer(lab.model, PROMPTS, reward, CONFIG, **more)
    return trainer, trainer.step


def reward(samples: list[ppo.Sample]) -> list[float]:
    """The share of the letter e, which can always be raised a little further."""
    return [s.text.count("e") / max(len(s.text), 1) for s in samples]


def summary(rows: Sequence[Mapping[str, float]], *, settle: int) -> dict[str, float]:
    """Slopes per 1,000 steps with the half-width of their 95 % interval, and the memory at the end.

    Each start has its own level: its mean is subtracted from its block means before one line is fitted through all.
    """
    result = {"resident MiB at the end": rows[-1]["memory/resident_mib"]}
    for name in ("memory/resident_mib", "memory/tensors", "memory/objects"):
        points = [point for start in blocks(rows, name, settle) for point in centred(start)]
        slope, half = fit(points, num_starts=len(blocks(rows, name, settle)))
        result[f"{name} per 1000 steps"] = 1000 * slope
        result[f"{name} per 1000 steps, 95 % ±"] = 1000 * half
    return result


def blocks(rows: Sequence[Mapping[str, float]], name: str, settle: int) -> list[list[tuple[float, float]]]:
    """For each start with at least two full blocks: (mean step, mean reading) of each block."""
    starts: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["step"] - row["start"] > settle:
            starts[row["start"]].append((row["step"], row[name]))
    found = []
    for readings in starts.values():
        whole = [readings[i : i + _BLOCK] for i in range(0, len(readings) - _BLOCK + 1, _BLOCK)]
        if len(whole) >= 2:
            found.append([(statistics.fmean(s for s, _ in b), statistics.fmean(x for _, x in b)) for b in whole])
    return found


def centred(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same points around (0, 0)."""
    x0, y0 = (statistics.fmean(values) for values in zip(*points, strict=True))
    return [(x - x0, y - y0) for x, y in points]


def fit(points: Sequence[tuple[float, float]], *, num_starts: int) -> tuple[float, float]:
    """Least squares through centred points: the slope and 1.96 of its standard errors; nan for too few points."""
    spread = sum(x * x for x, _ in points)
    free = len(points) - num_starts - 1
    if free < 1 or spread == 0:
        return math.nan, math.nan
    slope = sum(x * y for x, y in points) / spread
    rest = sum((y - slope * x) ** 2 for x, y in points)
    return slope, 1.96 * math.sqrt(rest / free / spread)


if __name__ == "__main__":
    main()
