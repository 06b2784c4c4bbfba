"""What drafts save: memorised passages, continued with the true suffix as a draft, with a wrong one, and without one.

    python -m benchmarks.drafts --threads 1
    python -m benchmarks.drafts --passages 64 --slots 64 --samples 1,8 --temperatures 0,1

The three take turns, ``--repeats`` times after a run that is not counted. Medians are shown, and the tokens of all
three are compared. The wrong draft shows how much time rejected drafts cost.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

import ppo
from benchmarks.machine import add_device, timed, write_json
from data.study import load_study
from data.types import Passage
from models.load import load


@dataclass(frozen=True)
class Case:
    """``passages`` as prompts, each continued ``samples`` times, with ``slots`` responses side by side."""

    passages: list[Passage]
    slots: int
    samples: int
    temperature: float

    def drafts(self, vocab_size: int) -> dict[str, list[list[int]] | None]:
        true = [list(passage.suffix) for passage in self.passages]
        return {"none": None, "true": true, "wrong": [[(t + 1) % vocab_size for t in suffix] for suffix in true]}

    def generate(self, model: Any, drafts: list[list[int]] | None) -> ppo.Generation:
        longest = max(len(passage.suffix) for passage in self.passages)
        sampling = ppo.Sampling(
            response_length=longest, num_samples=self.samples, temperature=self.temperature, eos_ids=()
        )
        prompts = [list(passage.prefix) for passage in self.passages]
        return ppo.generate(model, prompts, sampling, slots=self.slots, drafts=drafts)


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load(options.model).on(options.device)
    vocab_size = loaded.model.config.vocab_size
    study = load_study(options.data, loaded.tokenizer, vocab_size)
    passages = [*study.group("forget"), *study.group("forget_holdout")]
    results = []
    for slots, samples, temperature in product(options.slots, options.samples, options.temperatures):
        count = options.passages or max(1, slots // samples)
        case = Case(passages[:count], slots, samples, temperature)
        results.append(measure(case, loaded.model, vocab_size, options.repeats))
        show(results[-1])
    write_json(options.json, {"options": vars(options), "results": results}, options.device)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="lab", help="a model that has memorised the data")
    parser.add_argument("--data", default="lab", help="as for demem.py")
    parser.add_argument("--passages", type=int, default=None, help="prompts (default: as many as fill the slots)")
    parser.add_argument("--slots", type=partial(numbers, kind=int), default="1,8,64", help="responses side by side")
    parser.add_argument("--samples", type=partial(numbers, kind=int), default="1", help="responses a prompt")
    parser.add_argument("--temperatures", type=partial(numbers, kind=float), default="0,1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    add_device(parser)
    parser.add_argument("--json", default=None, help="file for the result")
    return parser.parse_args()


def numbers(text: str, *, kind: type) -> list[Any]:
    return [kind(part) for part in text.split(",")]


def measure(case: Case, model: Any, vocab_size: int, repeats: int) -> dict[str, Any]:
    """Seconds and speed of the three candidates, and how many draft tokens the warm-up run accepted."""
    drafts = case.drafts(vocab_size)
    warm_up = {name: case.generate(model, draft) for name, draft in drafts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in drafts}
    for _ in range(repeats):
        for name, draft in drafts.items():
            seconds[name].append(timed(lambda draft=draft: case.generate(model, draft)))
    num_tokens = int(warm_up["none"].mask.sum())
    return {
        "passages": len(case.passages),
        "slots": case.slots,
        "samples": case.samples,
        "temperature": case.temperature,
        "seconds": seconds,
        "tokens_per_second": {name: num_tokens / statistics.median(times) for name, times in seconds.items()},
        "acceptance": {name: warm_up[name].metrics["generate/draft_acceptance"] for name in ("true", "wrong")},
        "draft_tokens": {name: warm_up[name].metrics["generate/draft_tokens"] for name in ("true", "wrong")},
        "same_tokens": all(torch.equal(warm_up[name].tokens, warm_up["none"].tokens) for name in ("true", "wrong")),
    }


def show(result: dict[str, Any]) -> None:
    speed = result["tokens_per_second"]
    print(
        f"{result['passages']:4} passages x {result['samples']:2}, {result['slots']:3} slots, "
        f"temperature {result['temperature']:g}: {speed['none']:6.0f} tokens/s, true drafts {speed['true']:6.0f} "
        f"({speed['true'] / speed['none']:.2f} times, {result['acceptance']['true']:.0%} of "
        f"{result['draft_tokens']['true']:.0f} accepted), wrong ones {speed['wrong'] / speed['none']:.2f} times; "
        f"{'same' if result['same_tokens'] else 'OTHER'} tokens"
    )


if __name__ == "__main__":
    main()
