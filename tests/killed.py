"""Kill (SIGKILL) training runs at chosen or random moments, resume them, and compare them with an unbroken run.

    python -m tests.killed FOLDER CASE --steps 4 --events 3 --times 10     prints a JSON report

Every run is a forked child of this program, so torch is imported once. ``--events`` sets the kills per phase, at calls
drawn at random from those of the unbroken run. The phases are "rollout" (a token for every row), "reward", "update" (a
microbatch, an optimiser step) and "write" (each file, flush, rename and deletion of a checkpoint). ``--every-write``
kills once at each call of the second checkpoint, as noted in the unbroken run. ``--times`` sets the kills by the clock,
from outside, at any moment. If the run has already ended by then, it is killed again at half the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.load import load
from models.lora import LoraConfig, add_lora
from ppo import Config, Trainer
from ppo import learner as gradients
from ppo.checkpoint import folder as checkpoint
from ppo.checkpoint import list_checkpoints, save_tensors
from ppo.checkpoint.run_state import RunState
from ppo.distributed import Processes
from ppo.generation.transcript import Transcript
from ppo.io import files
from ppo.optim import optimizer
from tests.fakes import tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
RETAIN = [[2, 4, 6, 8, 10, 12], [3, 5, 7]]
CONFIG = Config(
    prompts_per_step=4, minibatch=2, microbatch=1, response_length=5, epochs=2, learning_rate=1e-2, scale_scores=True,
    retain_coef=0.5, retain_loss="kl", retain_tokens=8, retain_sequences=2, warmup_steps=2, schedule="cosine",
    total_steps=20, save_every_steps=1, keep_checkpoints=2,
)  # fmt: skip
CASES: dict[str, tuple[Callable, Config]] = {
    "tiny": (tiny_gpt2, CONFIG),
    "one kept": (tiny_gpt2, CONFIG.replace(keep_checkpoints=1)),
    "critic": (tiny_llama, CONFIG.replace(value_head="critic", autocast="bfloat16")),
    "bf16": (lambda: tiny_gpt2().to(torch.bfloat16), CONFIG.replace(moment_dtype="bfloat16", value_head="mlp")),
    "lora": (lambda: adapted(), CONFIG.replace(advantage="rloo", samples_per_prompt=2, prompts_per_step=2)),
    "lab": (lambda: load("lab").model, CONFIG.replace(response_length=12, learning_rate=1e-4)),
}
PHASES = ("rollout", "reward", "update", "write")


def adapted():
    model = tiny_gpt2()
    add_lora(model, LoraConfig(("c_attn", "c_fc"), rank=2), generator=torch.Generator().manual_seed(1))
    return model


def reward(samples):
    """A reward that draws from every global generator, because a checkpoint must hold their states too."""
    return [
        s.ids.count(5) + float(torch.rand(())) + random.random() + float(np.random.rand())  # noqa: NPY002
        for s in samples
    ]


class Calls:
    """Counts the calls of a run by phase, and kills the process before or after one chosen call."""

    def __init__(self, kill_at: tuple[str, int] | None = None) -> None:
        self.counts = dict.fromkeys(PHASES, 0)
        self.saves: list[list[str]] = []  # the calls of each numbered checkpoint, by name
        self.first_of_saves: list[int] = []  # for each numbered checkpoint, the calls of "write" before it
        self.kill_at = kill_at

    def hit(self, phase: str) -> None:
        if self.kill_at == (phase, self.counts[phase]):
            os.kill(os.getpid(), signal.SIGKILL)
        self.counts[phase] += 1

    def watch(self, owner: object, name: str, phase: str) -> None:
        """Count a hit before and a hit after every call of this function."""
        function = getattr(owner, name)

        def watched(*arguments, **named):
            if phase == "write" and self.saves:
                self.saves[-1] += [name, name]
            self.hit(phase)
            result = function(*arguments, **named)
            self.hit(phase)
            return result

        setattr(owner, name, watched)

    def note_saves(self) -> None:
        """Note every call of save_numbered: the writes and deletions that follow belong to that checkpoint."""
        function = RunState.save_numbered

        def noted(state, folder):
            self.first_of_saves.append(self.counts["write"])
            self.saves.append([])
            return function(state, folder)

        RunState.save_numbered = noted

    def install(self, *, has_deletions: bool = False) -> None:
        """Start to count. ``has_deletions`` also counts every single deletion, for runs that keep one checkpoint."""
        self.note_saves()
        if has_deletions:
            self.watch(os, "unlink", "write")
            self.watch(os, "rmdir", "write")
        self.watch(Transcript, "advance", "rollout")
        self.watch(gradients, "ppo_loss", "update")
        self.watch(optimizer.Optimizer, "step", "update")
        for owner, name in (
            (checkpoint, "save_file"), (checkpoint, "sha256"), (checkpoint, "flush"), (files, "flush"), (os, "link"),
            (os, "replace"), (shutil, "rmtree"),
        ):  # fmt: skip
            self.watch(owner, name, "write")

    def reward(self, samples):
        self.hit("reward")
        answer = reward(samples)
        self.hit("reward")
        return answer


def train(case: str, out: Path, steps: int, calls: Calls) -> None:
    """Start or resume the run in ``out``, train to ``steps``, and write everything that the run depends on."""
    torch.set_num_threads(1)
    processes = Processes.current()
    make, config = CASES[case]
    calls.install(has_deletions=case == "one kept")
    if processes.first(lambda: bool(list_checkpoints(out / "checkpoints"))):
        model = make() if case == "lora" else None
        trainer = Trainer.resume(out, PROMPTS, calls.reward, model=model, retain=RETAIN, out=out)
    else:
        # A run that was killed before its first checkpoint starts again from nothing.
        processes.first(lambda: shutil.rmtree(out, ignore_errors=True))
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = make()
        trainer = Trainer(model, PROMPTS, calls.reward, config, retain=RETAIN, out=out)
    trainer.train(steps - trainer.step, progress=False)
    if not processes.is_first:
        return
    numbers = [
        trainer.kl.coef,
        trainer.step,
        trainer.learner.optimizer.num_updates,
        *vars(trainer.scorer.moments).values(),
    ]
    save_tensors(
        out / "end.safetensors",
        {f"weights.{name}": p for name, p in trainer.policy.actor.named_parameters()}
        | {f"adam.{name}": x for name, x in trainer.learner.optimizer.state_tensors().items()}
        | {"numbers": torch.tensor([float(x) for x in numbers], dtype=torch.float64)}
        | {"order": trainer.stream.order, "generator": trainer.generator.get_state(), "torch": torch.get_rng_state()},
    )
    noted = {"counts": calls.counts, "saves": calls.saves, "first_of_saves": calls.first_of_saves}
    (out / "calls.json").write_text(json.dumps(noted), encoding="utf-8")


def in_child(action: Callable[[], None], *, kill_after: float | None = None) -> int:
    """Run the action in a forked child and return its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        end = time.perf_counter() + kill_after
        while (left := end - time.perf_counter()) > 0:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(min(left, 0.02))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(out: Path) -> dict[str, object]:
    """What a run has written: weights, moments and numbers bit for bit, samples, and metrics without times."""
    timed = ("time/", "generate/seconds", "generate/prefill_seconds", "generate/tokens_per_second")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "end": hashlib.sha256((out / "end.safetensors").read_bytes()).hexdigest(),
        "samples": hashlib.sha256((out / "samples.jsonl").read_bytes()).hexdigest(),
        "metrics": [{name: x for name, x in row.items() if not name.startswith(timed)} for row in rows],
        "checkpoints": [p.name for p in sorted((out / "checkpoints").iterdir())],
    }


def killed_run(case: str, folder: Path, steps: int, kill: tuple[str, int] | float) -> int:
    """Exit status of a new run that is killed at a call, or after so many seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(kill, float):
        return in_child(lambda: train(case, folder, steps, Calls()), kill_after=kill)
    return in_child(lambda: train(case, folder, steps, Calls(kill)))


def trial(case: str, folder: Path, steps: int, kill: tuple[str, int] | float, expected: dict) -> dict[str, object]:
    """One kill, one resumed run, one comparison."""
    status = killed_run(case, folder, steps, kill)
    while isinstance(kill, float) and status == 0:
        kill /= 2
        status = killed_run(case, folder, steps, kill)
    saved = list_checkpoints(folder / "checkpoints")
    leftovers = sorted(p.name for p in (folder / "checkpoints").glob("*.*"))
    resumed = in_child(lambda: train(case, folder, steps, Calls()))
    found = fingerprint(folder) if resumed == 0 else {}
    return {
        "kill": kill, "status": status, "checkpoints": [path.name for path in saved], "leftovers": leftovers,
        "resumed": resumed, "differs": [name for name in expected if found.get(name) != expected[name]],
    }  # fmt: skip


def kills(calls: dict, seconds: float, options: argparse.Namespace) -> list:
    """The moments of the kills, drawn from the seed."""
    generator, counts = random.Random(options.seed), calls["counts"]
    chosen: list = [
        (phase, generator.randrange(counts[phase])) for phase in PHASES for _ in range(options.events)
    ]  # fmt: skip
    if options.every_write:  # the second checkpoint, because it deletes the first if only one is kept
        chosen += [("write", calls["first_of_saves"][1] + call) for call in range(len(calls["saves"][1]))]
    return chosen + [generator.uniform(0, seconds) for _ in range(options.times)]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--events", type=int, default=1, help="kills in each phase")
    parser.add_argument("--every-write", action="store_true")
    parser.add_argument("--times", type=int, default=0, help="kills by the clock")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    unbroken = options.folder / "unbroken"
    started = time.perf_counter()
    if in_child(lambda: train(options.case, unbroken, options.steps, Calls())) != 0:
        sys.exit("the unbroken run failed")
    seconds = time.perf_counter() - started
    expected = fingerprint(unbroken)
    calls = json.loads((unbroken / "calls.json").read_text(encoding="utf-8"))
    report = [
        trial(options.case, options.folder / "killed", options.steps, kill, expected)
        for kill in kills(calls, seconds, options)
    ]
    names = calls["saves"][1] if len(calls["saves"]) > 1 else []
    print(json.dumps({"seconds": seconds, "counts": calls["counts"], "second_save": names, "trials": report}))


if __name__ == "__main__":
    main(sys.argv[1:])
