"""Checkpoints with one wrong field and right checksums, as somebody who knows the format would make them.

    python -m tests.resealed --inputs 1000      so many, drawn from all fields and all wrong values; a JSON report

Each field of state.json, at every depth, gets many wrong values; so does each field of the config within. A resume
either gives a trainer whose next step runs, or raises a ValueError of one line that names the field. Which fields of
state.json are taken is listed here (``HARMLESS``). What a config may say is more than a test can run, so that a config
that is taken is only resumed.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ppo import Config, Trainer
from ppo.checkpoint import state_sha256
from tests.fakes import tiny_gpt2

PROMPTS, KEEP = [[2, 3, 4], [5, 6], [7]], [[2, 3, 4, 5], [6, 7]]
CONFIG = Config(
    prompts_per_step=2, minibatch=2, response_length=2, epochs=1, scale_scores=True, kl_coef=0.1, retain_coef=0.1,
    retain_tokens=4, retain_sequences=2, critic_warmup_steps=1, detach_value_head=True, best_metric="score/mean",
    microbatch_tokens=500, train_top_layers=1,
)  # fmt: skip
WRONG = {
    "null": None, "true": True, "negative": -1, "zero": 0, "half": 0.5, "more than any count": 2**53 + 1,
    "beyond int64": 2**63, "beyond floats": 10**400, "large": 1e308, "largest below 0": -1e308, "NaN": math.nan,
    "infinite": math.inf, "subnormal": 5e-324, "empty": "", "text": "x", "long text": "x" * 10_000, "list": [],
    "nested": [[[[]]]], "long list": [0] * 1000, "object": {}, "deep object": {"a": {"b": 1}}, "left out": ...,
}  # fmt: skip
HARMLESS = {  # what is no error, and why
    "kind": {"left out"},  # older checkpoints lack these
    "limits": {"left out"},
    "own": {"left out"},
    "critic_updates": {"left out"},
    "kl_coef": {"half", "subnormal"},
    "moments.mean": {"zero", "negative", "half", "more than any count", "beyond int64", "subnormal"},
    "moments.squares": {"zero", "half", "more than any count", "beyond int64", "subnormal"},
    "best.value": {"half", "large", "largest below 0", "subnormal"},
    "num_not_finite": {"zero"},
    "frozen": {"null", "list"},  # the config's train_top_layers freezes them once more
    "frozen.0": {"left out"},
    "attention": {"null"},
    "limits.microbatch": {"null"},
    "limits.reference_rows": {"null", "left out"},
}
SLOWEST_SECONDS = 10.0  # of the processor
Field = tuple[str | int, ...]  # keys and list indices from the root of state.json


def reward(samples: list[Any]) -> list[float]:
    return [float(sum(sample.ids) % 5) for sample in samples]


def saved_run(folder: Path) -> Path:
    """A good checkpoint with every field that a run can have."""
    trainer = Trainer(tiny_gpt2(), PROMPTS, reward, CONFIG, retain=KEEP, out=folder)
    trainer.train(2, progress=False)
    return trainer.save(folder / "good")


def resume(checkpoint: Path) -> Trainer:
    return Trainer.resume(checkpoint, PROMPTS, reward, retain=KEEP)


def fields(record: Any, path: Field = ()) -> Iterator[Field]:
    """The path of every field, lists by their first item."""
    for key, value in record.items() if isinstance(record, dict) else list(enumerate(record))[:1]:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from fields(value, (*path, key))


def state_fields(state: dict[str, Any]) -> Iterator[Field]:
    """The fields of state.json but for its checksums and the config."""
    yield from fields({name: x for name, x in state.items() if name not in ("sha256", "state_sha256", "config")})


def changed(state: dict[str, Any], path: Field, value: object) -> dict[str, Any]:
    """A copy whose field has another value, or is left out (``...``)."""
    state = copy.deepcopy(state)
    holder: Any = state
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return state


def seal(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write state.json with its right checksum."""
    (checkpoint / "state.json").write_text(json.dumps(state | {"state_sha256": state_sha256(state)}), encoding="utf-8")


def outcome(checkpoint: Path, names: set[str]) -> Trainer | str:
    """The trainer, or "refused" if the error is one line that has one of the names in it; else what went wrong."""
    try:
        return resume(checkpoint)
    except ValueError as error:
        text = str(error)
        is_one_line = "\n" not in text and len(text) < 2000
        return "refused" if is_one_line and any(name in text for name in names) else f"unnamed: {text:.300}"


def variants(state: dict[str, Any]) -> list[tuple[Field, str]]:
    """Every field with every wrong value that is not its own. No field of a config is left out: an old one may be."""
    found = [(path, how) for path in state_fields(state) for how in WRONG]
    found += [(("config", name), how) for name in state["config"] for how, value in WRONG.items() if value is not ...]
    return [(path, how) for path, how in found if changed(state, path, WRONG[how]) != state]


def trial(checkpoint: Path, state: dict[str, Any], path: Field, how: str) -> str:
    """ "taken", "refused", or what went wrong with one variant."""
    seal(checkpoint, changed(state, path, WRONG[how]))
    if path[0] == "config":
        found = outcome(checkpoint, {str(path[1])})
        return "taken" if isinstance(found, Trainer) else found
    found = outcome(checkpoint, {"moments"} if path[0] == "moments" else {str(path[0]), "kl_coef"})
    is_harmless = how in HARMLESS.get(".".join(map(str, path)), ())
    if isinstance(found, Trainer):
        found.train(1, progress=False)
        return "taken" if is_harmless else "taken, but it is wrong"
    return "refused, but it is harmless" if found == "refused" and is_harmless else found


def main(arguments: list[str] | None = None) -> int:
    """Try so many variants and print how many were taken, refused and lost; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.resealed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000, help="variants, drawn without repetition")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    counts: collections.Counter[str] = collections.Counter()
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = saved_run(Path(folder))
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        every = variants(state)
        for path, how in random.Random(options.seed).sample(every, min(options.inputs, len(every))):
            started = time.process_time()
            try:
                found = trial(checkpoint, state, path, how)
            except Exception as error:  # any other error than a ValueError is what is looked for
                found = f"{type(error).__name__}: {error!s:.300}"
            if (seconds := time.process_time() - started) > SLOWEST_SECONDS:
                found = f"took {seconds:.1f} s"
            counts[found if found in ("taken", "refused") else "lost"] += 1
            if found not in ("taken", "refused"):
                lost.append(f"{'.'.join(map(str, path))}, {how}: {found}")
    print(json.dumps({"of": len(every), "tried": counts.total(), **counts, "trials": lost}))
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
