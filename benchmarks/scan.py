"""How fast a scan asks a model, beside the model's own forward pass over the same tokens.

    python -m benchmarks.scan --threads 1
    python -m benchmarks.scan --threads 1 --model HuggingFaceTB/SmolLM2-135M

The bare side is ``model(ids).logits`` of transformers, as many rows at a time as the scan takes. The scan scores all
tokens of a pass behind its prefix: first choice, log-prob, log-prob under top-k. Its limit is the share of the bare
rate that it must reach, 0.7. Both sides take turns, ``--repeats`` times after a run that is not counted. Medians are
shown.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.machine import add_device, timed, write_json
from data.lab import lab_retain
from eval.scan.measure import metered
from eval.scan.passes import layout
from models.load import LoadedModel, load
from ppo.lm.backbone import context_length

LIMIT = 0.7
PREFIX, SUFFIX = 50, 50


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(load(options.model).on(options.device), options)
    print(
        f"{options.model}: {result['bare']:,.0f} tokens/s bare, {result['scan']:,.0f} in a scan "
        f"({result['scan'] / result['bare']:.2f}; at least {LIMIT})"
    )
    write_json(options.json, {"options": vars(options), "result": result}, options.device)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--passes", type=int, default=16)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    add_device(parser)
    parser.add_argument("--json", default=None, help="file for the result")
    return parser.parse_args()


def measure(loaded: LoadedModel, options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of both sides, medians."""
    limit = context_length(loaded.model)
    shape = layout([PREFIX], SUFFIX, room=None if limit is None else limit - 1)
    passes = lab_retain(loaded.tokenizer, shape.length)[: options.passes]
    rows = max(1, options.batch_tokens // (shape.length + 1))
    ids = torch.tensor(passes, device=next(loaded.model.parameters()).device)

    @torch.no_grad()
    def bare() -> None:
        for part in ids.split(rows):
            loaded.model(part).logits[0, 0, 0].item()

    times: dict[str, list[float]] = {"bare": [], "scan": []}
    with metered(loaded.model, bos=0, length=shape.length, batch_tokens=options.batch_tokens) as meter:

        def scan() -> None:
            list(meter.columns(passes, [PREFIX] * len(passes)))

        for turn in range(options.repeats + 1):
            for name, work in (("bare", bare), ("scan", scan)):
                seconds = timed(work)
                if turn:
                    times[name].append(seconds)
    return {name: ids.numel() / statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
