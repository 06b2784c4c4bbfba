"""What the evaluation costs beside the two passes that it needs in any case.

    python -m benchmarks.evaluation --threads 1
    python -m benchmarks.evaluation --threads 1 --passages 150 --num-samples 4

The two passes are one greedy generation from every prefix and one teacher-forced pass over every passage, whole.
The evaluation adds everything else: a second pass for suffixes without the pre-prefix, BLEU, edit distances, membership
and intervals. It draws no samples unless ``--num-samples`` says so (an evaluation's default is 4 a prefix). Held-out
text, the NLL of the outputs under an original model and extraction likelihood are left out. The passages, of 100 + 50 +
50 tokens, are cut from the lab's retain text and dealt out to the groups. Both sides take turns, ``--repeats`` times
after a run that is not counted. Medians are shown.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

import ppo
from benchmarks.machine import add_device, timed, write_json
from data.lab import lab_retain
from data.types import Passage
from eval.evaluate import evaluate
from eval.protocols import whole
from eval.settings import Settings
from eval.teacher import teacher_force
from models.load import LoadedModel, load

PRE_PREFIX, PREFIX, SUFFIX = 100, 50, 50
GROUPS = ("forget", "forget_holdout", "keep", "never")


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load(options.model).on(options.device)
    passages = make_passages(loaded, options.passages)
    settings = Settings(num_samples=options.num_samples)
    result = measure(loaded, passages, settings, options.repeats)
    show(result)
    write_json(options.json, {"options": vars(options), "result": result}, options.device)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--passages", type=int, default=1000, help="of 200 tokens each")
    parser.add_argument("--num-samples", type=int, default=0, help="sampled continuations of every prefix")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    add_device(parser)
    parser.add_argument("--json", default=None, help="file for the result")
    return parser.parse_args()


def make_passages(loaded: LoadedModel, count: int) -> list[Passage]:
    """``count`` passages of 200 tokens, evenly spread over the text; neighbours may overlap."""
    length = PRE_PREFIX + PREFIX + SUFFIX
    tokens = [token for chunk in lab_retain(loaded.tokenizer, 128) for token in chunk]
    step = (len(tokens) - length) // count
    if step < 1:
        raise ValueError(f"--passages {count}: the retain text has only {len(tokens)} tokens")
    rows = [tokens[i * step : i * step + length] for i in range(count)]
    first, second = PRE_PREFIX, PRE_PREFIX + PREFIX
    return [
        Passage(str(i), tuple(row[:first]), tuple(row[first:second]), tuple(row[second:]), GROUPS[i % len(GROUPS)])
        for i, row in enumerate(rows)
    ]


def measure(loaded: LoadedModel, passages: list[Passage], settings: Settings, repeats: int) -> dict[str, Any]:
    """Seconds of each run of generation, teacher forcing and evaluation, and the ratio of their medians."""
    greedy = ppo.Sampling(response_length=SUFFIX, temperature=0.0)
    prompts = [list(p.prefix) for p in passages]
    sequences = [whole(p) for p in passages]
    sides = {
        "generation": lambda: ppo.generate(loaded.model, prompts, greedy, slots=settings.slots),
        "teacher": lambda: teacher_force(
            loaded.model, sequences, sampling=settings.sampler(), batch_tokens=settings.batch_tokens,
            chunk_tokens=settings.chunk_tokens,
        ),
        "evaluation": lambda: evaluate(loaded.model, loaded.tokenizer, passages, settings=settings),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            taken = timed(side)
            if repeat:
                seconds[name].append(taken)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = medians["evaluation"] / (medians["generation"] + medians["teacher"])
    return {
        "passages": len(passages),
        "num_samples": settings.num_samples,
        "seconds": seconds,
        "medians": medians,
        "ratio": ratio,
    }


def show(result: dict[str, Any]) -> None:
    medians = result["medians"]
    print(
        f"{result['passages']} passages of {PRE_PREFIX} + {PREFIX} + {SUFFIX} tokens, {result['num_samples']} samples: "
        f"evaluation {medians['evaluation']:.2f} s, generation {medians['generation']:.2f} s + teacher-forced pass "
        f"{medians['teacher']:.2f} s: {result['ratio']:.2f} times the two"
    )


if __name__ == "__main__":
    main()
