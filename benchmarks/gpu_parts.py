"""The parts of ``benchmarks.gpu`` that measure. Each is a process of its own, started by that program.

A part notes a result as soon as it has it, and what is wrong as a problem. One measurement that fails is a problem, and
the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import ppo
from benchmarks import rollout, update
from benchmarks.bits import RUNS, compare_bits
from benchmarks.cost.check import architecture, plan_of
from benchmarks.cost.device import measured
from benchmarks.cost.estimate import estimate
from benchmarks.machine import add_device, peak_memory_bytes, timed
from benchmarks.models import make_model, random_prompts
from ppo.io.files import replace_text
from ppo.lm.device import move

STEP_VARIANTS = ("shared", "shared-bf16", "critic-bf16")


class Notes:
    """What a part has found so far, kept in a file."""

    def __init__(self, file: Path) -> None:
        self.found: dict[str, Any] = {"problems": []}
        self._file = file

    def add(self, name: str, value: Any) -> None:
        self.found[name] = value
        replace_text(self._file, json.dumps(self.found, default=str))

    def problem(self, text: str) -> None:
        self.add("problems", [*self.found["problems"], text])

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """An error in the block is noted as a problem, and the part goes on. Memory that ran out is such an error."""
        try:
            yield
        except Exception as error:  # every kind: the other measurements are worth having
            self.problem(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


# ---------------------------------------------------------------------- resume


def measure_resume(notes: Notes, device: torch.device, *, is_tiny: bool) -> None:
    """Four steps in one go; two and two with a checkpoint between; and the first two once more from the seed."""
    names = ["linear", "lora"] if is_tiny else list(RUNS)
    for name in names:
        with notes.trying(name), tempfile.TemporaryDirectory() as folder:
            notes.add(name, compare_bits(name, device, Path(folder)))
            for what in ("resumed", "repeated"):
                if wrong := notes.found[name][what]:
                    notes.problem(f"{name}: {what} differs in {len(wrong)} tensors or numbers, first in {wrong[0]}")
    same = sum(name in notes.found and not any(notes.found[name].values()) for name in names)
    notes.add("headline", f"{same} of {len(names)} runs go on and repeat bit for bit")


# ---------------------------------------------------------------------- step


def measure_step(notes: Notes, device: torch.device, *, is_tiny: bool) -> None:
    """A step by ``benchmarks.update``, and what the cost model says of it with the rates of this device."""
    sizes = {"prompts": 4, "prompt_length": 6, "response_length": 6} if is_tiny else {
        "prompts": 64, "prompt_length": 64, "response_length": 64}  # fmt: skip
    for variant in STEP_VARIANTS[:1] if is_tiny else STEP_VARIANTS:
        with notes.trying(variant):
            options = argparse.Namespace(
                model="random:tiny" if is_tiny else "random:smollm2", variant=variant, epochs=2, microbatch=None,
                lora_rank=8, repeats=1 if is_tiny else 2, device=device, **sizes,
            )  # fmt: skip
            found = update.measure(options)
            notes.add(variant, found | beside_model(variant, vars(options), found))
    known = {name: notes.found[name] for name in STEP_VARIANTS if name in notes.found}
    words = [
        f"{name} {one['median_seconds']['step']:.2f} s, {one['peak_memory_bytes'] / 1e9:.1f} GB "
        f"({one['predicted_over_measured_peak']:.2f} of it predicted)"
        for name, one in known.items()
    ]
    notes.add("headline", "; ".join(words))


def beside_model(variant: str, options: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The cost model's seconds by part and bytes by phase, with the measured rates of the device.

    torch's own count of a peak leaves out the context of CUDA, and so does the prediction.
    """
    device = measured(found["rates"], memory=math.inf, start=found["start_memory_bytes"])
    predicted = estimate(architecture(options["model"]), plan_of(variant, options), device)
    return {
        "predicted_seconds": predicted.seconds_by_part(),
        "predicted_bytes": {phase: predicted.memory.total(phase) for phase in predicted.memory.phases},
        "predicted_peak_bytes": predicted.memory.peak,
        "predicted_over_measured_peak": predicted.memory.peak / found["peak_memory_bytes"],
    }


# ---------------------------------------------------------------------- rollout


def measure_rollout(notes: Notes, device: torch.device, *, is_tiny: bool) -> None:
    """Tokens a second, each rival in turns with ours, so that one that cannot run costs nothing but itself."""
    name, dtype = ("random:tiny", "float32") if is_tiny else ("random:smollm2", "bfloat16")
    model = make_model(name, getattr(torch, dtype))
    move(model, device)
    sizes = {"batch": 2, "requests": 4, "length": 6} if is_tiny else {"batch": 64, "requests": 256, "length": 128}
    for rival in ("hf", "hf-static", "hf-continuous"):
        for mean in (None, sizes["length"] // 3):
            kind = "full length" if mean is None else "ragged"
            if (rival == "hf-static" and mean is not None) or (rival == "hf-continuous" and mean is None):
                continue  # what each is made for
            with notes.trying(f"{rival}, {kind}"):
                notes.add(f"{rival}, {kind}", beside_rival(model, name, rival, mean, sizes))
    with notes.trying("greedy"):
        notes.add("greedy_same_share", greedy_same_share(name, device, sizes))
    found = {key: value for key, value in notes.found.items() if isinstance(value, dict)}
    notes.add("headline", "; ".join(f"{value['times_best_hf']:.2f} x {key}" for key, value in found.items()))


def beside_rival(model: Any, name: str, rival: str, mean: int | None, sizes: dict[str, int]) -> dict[str, Any]:
    options = argparse.Namespace(
        model=name, requests=sizes["requests"] if mean else sizes["batch"], prompt_length=sizes["length"] // 2,
        response_length=sizes["length"], mean_length=mean, against=[rival], repeats=2,
    )  # fmt: skip
    return rollout.measure(model, sizes["batch"], options, is_first=False)


def greedy_same_share(name: str, device: torch.device, sizes: dict[str, int], *, compiled: bool = False) -> float:
    """The share of equal greedy tokens in float32: ours against transformers', or compiled against ours.

    A random model has nearly equal logits, so rounding can change a token, and then all that follow in its row.
    """
    model = make_model(name)
    move(model, device)
    length = sizes["length"] // 2
    prompts = torch.tensor(random_prompts(model, sizes["batch"], length), device=device)
    sampling = ppo.Sampling(response_length=length, temperature=0.0, eos_ids=())
    ours = ppo.generate(model, prompts.tolist(), sampling).tokens
    if compiled:
        other = ppo.generate(model, prompts.tolist(), sampling, compiled=True).tokens
    else:
        other = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=length, do_sample=False, pad_token_id=0
        )[:, length:]
    return float((ours == other).double().mean())


# ---------------------------------------------------------------------- compiled


def measure_compiled(notes: Notes, device: torch.device, *, is_tiny: bool) -> None:
    """The compiled decoder in turns with the ordinary one, and a trainer's rollout with it."""
    name, dtype = ("random:tiny", "float32") if is_tiny else ("random:smollm2", "bfloat16")
    sizes = {"length": 6} if is_tiny else {"length": 64}
    model = make_model(name, getattr(torch, dtype))
    move(model, device)
    for batch in (2,) if is_tiny else (8, 64):
        with notes.trying(f"batch {batch}"):
            sizes |= {"batch": batch, "requests": batch}
            found = beside_rival(model, name, "ppo-compiled", None, sizes)
            speeds = found["tokens_per_second"]
            notes.add(f"batch {batch}", found | {"times_ordinary": speeds["ppo-compiled"] / speeds["ppo"]})
    with notes.trying("greedy"):
        notes.add("greedy_same_share", greedy_same_share(name, device, sizes, compiled=True))
    with notes.trying("trainer"):
        notes.add("trainer", compiled_steps(model, device, sizes))
    found = {key: value for key, value in notes.found.items() if key.startswith("batch")}
    notes.add("headline", "; ".join(f"{value['times_ordinary']:.2f} x ordinary, {key}" for key, value in found.items()))


def compiled_steps(model: Any, device: torch.device, sizes: dict[str, int]) -> dict[str, Any]:
    """Seconds of three rollouts of a trainer: weights move between them, and the compiled step must not be stale."""
    length = sizes["length"] // 2
    config = ppo.Config(prompts_per_step=4, minibatch=4, response_length=length, epochs=1, compiled_rollout=True)
    trainer = ppo.Trainer(model, random_prompts(model, 4, length), letter_e_of_ids, config, device=device)
    seconds, gaps = [], []
    for _ in range(3):
        made: list[ppo.Rollout] = []
        seconds.append(timed(lambda made=made: made.append(trainer.rollout())))
        gaps.append(trainer.update(made[0])["rollout/logprob_gap"])
    return {"rollout_seconds": seconds, "logprob_gaps": gaps, "peak_memory_bytes": peak_memory_bytes(device)}


def letter_e_of_ids(samples: list[ppo.Sample]) -> list[float]:
    """Something that differs from sample to sample, where there is no tokenizer."""
    return [float(sum(s.ids) % 7) for s in samples]


PARTS: dict[str, Callable[..., None]] = {
    "resume": measure_resume,
    "step": measure_step,
    "rollout": measure_rollout,
    "compiled": measure_compiled,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    add_device(parser)
    options = parser.parse_args()
    notes = Notes(options.out)
    PARTS[options.part](notes, options.device, is_tiny=options.tiny)
    for problem in notes.found["problems"]:
        print(problem, file=sys.stderr)
    return int(bool(notes.found["problems"]))


if __name__ == "__main__":
    sys.exit(main())
