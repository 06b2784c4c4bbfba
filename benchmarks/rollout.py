"""Sampling speed of ``ppo.generate`` beside transformers' own, and beside the matrix products that both need.

    python -m benchmarks.rollout --model lab --batch 64 --against hf,hf-static
    python -m benchmarks.rollout --model random:smollm2 --dtype bfloat16 --batch 8,32 --against hf,hf-static
    python -m benchmarks.rollout --model random:smollm2 --batch 32 --requests 64 --mean-length 24 --response-length 96

The candidates take turns on the same prompts, ``--repeats`` times after one run that is not counted. The medians are
shown. The limit is the time of the decoder's matrix products alone, on the same rows in the same order, measured
between the runs. Every time includes prefill. ``random:lab`` and ``random:smollm2`` are untrained models of that shape:
speed does not depend on weights. With ``--mean-length`` responses end at random: a share of the vocabulary counts as
EOS, so that lengths are geometric. This needs an untrained model. More requests than ``--batch`` show what scheduling
does.

    ppo-hf         ``engine="hf"``
    ppo-padded     the fast decoder without scheduling: batches of ``--batch`` requests, each decoded to the length of
                   its longest response
    ppo-compiled   ``compiled=True``, which compiles in the run that is not counted; its seconds are the warm-up's

Peak memory counts pages that the process had not touched before. So only that of the first ``--batch`` shows what is
needed, and only there it is compared with cache, logits and the decoder's own weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig

import ppo
from benchmarks.machine import PeakMemory, add_device, settle, timed, write_json
from benchmarks.models import make_model, random_prompts
from benchmarks.products import linears, needed_bytes, products
from eval.provenance import provenance
from models.load import load
from ppo.generation.decoders import bind
from ppo.generation.transformer import Network

ENGINES = ("hf", "hf-static", "hf-continuous", "ppo-hf", "ppo-padded", "ppo-compiled")


@dataclass
class Workload:
    """The work that every candidate does: ``prompts`` int64 [R, P], ``batch`` sequences side by side."""

    prompts: Tensor
    batch: int
    response_length: int
    eos_ids: tuple[int, ...]

    @property
    def sampling(self) -> ppo.Sampling:
        return ppo.Sampling(response_length=self.response_length, eos_ids=self.eos_ids)


@dataclass
class Outcome:
    """Seconds and tokens a second of each run, response tokens of the last run, growth of resident memory in the first.

    ``lengths`` int64 [R]: tokens of each response of the last run; None for a candidate that does not tell.
    """

    seconds: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    tokens: int = 0
    lengths: Tensor | None = None
    warm_up_seconds: float = 0.0
    peak_bytes: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(self.speeds)

    def note(self, seconds: float) -> None:
        """Add a run of ``tokens`` that counts."""
        self.seconds.append(seconds)
        self.speeds.append(self.tokens / seconds)


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(options.model, getattr(torch, options.dtype)).to(options.device)
    results = []
    machine = provenance(options.device)
    print(f"{machine['device']}, {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}")
    print(f"weights in {options.dtype}")
    for batch in options.batch:
        results.append(measure(model, batch, options, is_first=not results))
        show(results[-1])
    write_json(options.json, {"options": vars(options), "results": results}, options.device)


def measure(model: Any, batch: int, options: argparse.Namespace, *, is_first: bool) -> dict[str, Any]:
    """All candidates in turns, ``batch`` sequences side by side. ``is_first``: memory is that of a new process."""
    work = make_workload(model, batch, options)
    network = bind(model, rows=batch, length=options.prompt_length + options.response_length)
    names = ["ppo", *options.against]
    outcomes = {name: Outcome() for name in names}
    limit = Outcome()
    if network is not None:  # whatever a process makes once is made before memory is measured
        measure_limit(network, work, Outcome(tokens=2 * len(work.prompts)), limit, is_warm_up=True)
    for repeat in range(options.repeats + 1):
        for name in names:
            torch.manual_seed(repeat)  # transformers samples from the global generator
            run(name, model, work, outcomes[name], outcomes["ppo"].lengths, is_warm_up=repeat == 0)
        if network is not None:
            measure_limit(network, work, outcomes["ppo"], limit, is_warm_up=repeat == 0)
    return summarise(work, network, outcomes, limit, is_first=is_first)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="lab", help="lab, a folder, random:lab or random:smollm2")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", default="64", type=numbers, help="sequences side by side, e.g. 8,32")
    parser.add_argument("--requests", type=int, default=None, help="responses in all (default: the batch)")
    parser.add_argument("--prompt-length", type=int, default=50, help="tokens")
    parser.add_argument("--response-length", type=int, default=50, help="most tokens of a response")
    parser.add_argument("--mean-length", type=int, default=None, help="mean tokens of a response (default: all)")
    parser.add_argument("--against", default="hf,hf-static", type=names, help="any of " + ", ".join(ENGINES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    add_device(parser)
    parser.add_argument("--json", default=None, help="file for the result")
    options = parser.parse_args()
    if options.mean_length is not None and not options.model.startswith("random:"):
        parser.error("--mean-length needs an untrained model: --model random:lab or random:smollm2")
    return options


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    chosen = [part for part in text.split(",") if part]
    unknown = set(chosen) - set(ENGINES)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ENGINES)}")
    if "hf-continuous" in chosen and not hasattr(transformers, "ContinuousBatchingConfig"):
        raise argparse.ArgumentTypeError(f"hf-continuous needs transformers 5.4; this is {transformers.__version__}")
    return chosen


def load_model(name: str, dtype: torch.dtype) -> Any:
    if name != "random:lab":
        return make_model(name, dtype)
    torch.manual_seed(0)
    lab = load("lab").model
    return type(lab)(lab.config).to(dtype).eval()


def make_workload(model: Any, batch: int, options: argparse.Namespace) -> Workload:
    prompts = torch.tensor(random_prompts(model, options.requests or batch, options.prompt_length), device=model.device)
    ends = model.config.vocab_size // options.mean_length if options.mean_length else 0
    return Workload(prompts, batch, options.response_length, tuple(range(1, 1 + ends)))


def run(name: str, model: Any, work: Workload, outcome: Outcome, lengths: Tensor | None, *, is_warm_up: bool) -> None:
    """One run of one candidate; a warm-up measures memory instead of time. ``lengths``: those of "ppo" just before."""
    with PeakMemory(model.device) as memory:
        settle()
        started = time.perf_counter()
        if name in ("ppo", "ppo-hf", "ppo-compiled"):
            engine, compiled = ("hf" if name == "ppo-hf" else "auto"), name == "ppo-compiled"
            generation = ppo.generate(
                model, work.prompts.tolist(), work.sampling, slots=work.batch, engine=engine, compiled=compiled
            )
            outcome.lengths = generation.mask.sum(dim=1)
            outcome.tokens = int(outcome.lengths.sum())
            outcome.metrics = dict(generation.metrics)
        elif name == "ppo-padded":
            assert lengths is not None  # "ppo" is the first candidate
            outcome.tokens = padded_batches(model, work, lengths)
        elif name == "hf-continuous":
            outcome.tokens = continuous_batching(model, work)
        else:
            parts = work.prompts.split(work.batch)
            outcome.tokens = sum(static_batch(model, part, work, is_static=name == "hf-static") for part in parts)
        settle()
        seconds = time.perf_counter() - started
    if is_warm_up:
        outcome.warm_up_seconds, outcome.peak_bytes = seconds, memory.peak_bytes
    else:
        outcome.note(seconds)


def static_batch(model: Any, prompts: Tensor, work: Workload, *, is_static: bool) -> int:
    """Run ``model.generate`` with its dynamic or static cache; return the number of response tokens up to EOS."""
    output = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=work.response_length, do_sample=True, top_k=0,
        pad_token_id=0, eos_token_id=list(work.eos_ids) or None,
        cache_implementation="static" if is_static else None, disable_compile=True,
    )  # fmt: skip
    return real_tokens(output[:, prompts.shape[1] :], work.eos_ids)


def padded_batches(model: Any, work: Workload, lengths: Tensor) -> int:
    """Run the fast decoder batch by batch; every row gets the length of the longest response of its batch."""
    for prompts, some in zip(work.prompts.split(work.batch), lengths.split(work.batch), strict=True):
        ppo.generate(
            model, prompts.tolist(), ppo.Sampling(response_length=int(some.max()), eos_ids=()), slots=work.batch
        )
    return int(lengths.sum())


def continuous_batching(model: Any, work: Workload) -> int:
    """Run transformers' own continuous batching with a cache for ``batch`` sequences; return its response tokens."""
    page = 32
    pages = -(-(work.prompts.shape[1] + work.response_length) // page) + 1
    config = transformers.ContinuousBatchingConfig(
        page_size=page, num_blocks=pages * work.batch, max_batch_tokens=max(256, 2 * work.batch)
    )
    settings = GenerationConfig(
        max_new_tokens=work.response_length, do_sample=True, top_k=0, pad_token_id=0,
        eos_token_id=list(work.eos_ids) or -1,
    )  # fmt: skip
    outputs = model.generate_batch(
        work.prompts.tolist(), generation_config=settings, continuous_batching_config=config, warmup=False
    )
    return sum(len(output.generated_tokens) for output in outputs.values())


def real_tokens(responses: Tensor, eos_ids: tuple[int, ...]) -> int:
    """Number of tokens up to and including the first EOS of each row."""
    is_eos = torch.isin(responses, torch.tensor(eos_ids, dtype=torch.long, device=responses.device))
    return int((is_eos.cumsum(dim=1) - is_eos.long() == 0).sum())


def measure_limit(network: Network, work: Workload, ours: Outcome, limit: Outcome, *, is_warm_up: bool) -> None:
    """Time the matrix products alone: every prompt token once, then as many full steps as the tokens need."""
    num_prompt_tokens = work.prompts.numel()
    steps = (ours.tokens - len(work.prompts)) / work.batch  # the first token of a response comes from prefill
    chunk = min(1024, num_prompt_tokens)
    prefill = timed(lambda: products(network, chunk, last=max(1, chunk // work.prompts.shape[1]))) * num_prompt_tokens
    decode = statistics.median(timed(lambda: products(network, work.batch, last=work.batch)) for _ in range(5))
    if not is_warm_up:
        limit.tokens = ours.tokens
        limit.note(prefill / chunk + decode * steps)


def summarise(
    work: Workload, network: Network | None, outcomes: dict[str, Outcome], limit: Outcome, *, is_first: bool
) -> dict[str, Any]:
    """Medians and ratios of one batch size; see ``show`` for the units."""
    ours = outcomes["ppo"]
    result: dict[str, Any] = {
        "batch": work.batch,
        "requests": len(work.prompts),
        "tokens_per_second": {name: outcome.tokens_per_second for name, outcome in outcomes.items()},
        "seconds": {name: outcome.seconds for name, outcome in outcomes.items()},
        "warm_up_seconds": {name: outcome.warm_up_seconds for name, outcome in outcomes.items()},
        "peak_bytes": {name: outcome.peak_bytes for name, outcome in outcomes.items()},
        "metrics": ours.metrics,
    }
    rivals = [outcome.tokens_per_second for name, outcome in outcomes.items() if name.startswith("hf")]
    if rivals:
        result["times_best_hf"] = ours.tokens_per_second / max(rivals)
    if network is not None:
        weights = sum(layer.in_features * layer.out_features for layer in linears(network))
        steps = ours.metrics["generate/decode_steps"]
        decode_seconds = ours.median - ours.metrics["generate/prefill_seconds"]
        read = weights * network.embedding.element_size() + ours.metrics["generate/cache_bytes"] / 2
        result |= {
            "limit_tokens_per_second": limit.tokens_per_second,
            "share_of_limit": ours.tokens_per_second / limit.tokens_per_second,
            "milliseconds_per_step": 1e3 * decode_seconds / steps,
            "gigabytes_per_second": read * steps / decode_seconds / 1e9,
            "gigaflops": 2 * weights * (ours.tokens - len(work.prompts)) / decode_seconds / 1e9,
        }
        if is_first:
            needed = needed_bytes(network, work.batch, ours.metrics["generate/cache_bytes"])
            result["times_needed_memory"] = ours.peak_bytes / needed
    return result


def show(result: dict[str, Any]) -> None:
    print(f"\nbatch {result['batch']}, {result['requests']} requests")
    for name, speed in result["tokens_per_second"].items():
        print(
            f"  {name:14} {speed:8.0f} tokens/s   peak memory +{result['peak_bytes'][name] / 2**20:.0f} MiB, "
            f"warm-up {result['warm_up_seconds'][name]:.1f} s"
        )
    if "limit_tokens_per_second" in result:
        print(f"  products alone {result['limit_tokens_per_second']:8.0f} tokens/s")
        print(
            f"  ppo: {result['share_of_limit']:.0%} of that limit, {result['milliseconds_per_step']:.2f} ms per step, "
            f"{result['gigabytes_per_second']:.1f} GB/s read, {result['gigaflops']:.0f} GFLOP/s, "
            f"padding waste {result['metrics']['generate/padding_waste']:.1%}, "
            f"cache {result['metrics']['generate/cache_bytes'] / 2**20:.0f} MiB"
        )
    if "times_needed_memory" in result:
        print(f"  peak memory {result['times_needed_memory']:.2f} times cache + logits + weights beside the model's")
    if "times_best_hf" in result:
        print(f"  {result['times_best_hf']:.2f} times the best of transformers")


if __name__ == "__main__":
    main()
