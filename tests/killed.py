"""Kill (SIGKILL) training runs at chosen or random moments, resume them, and compare them with an unbroken run.

    python -m tests.killed FOLDER CASE --steps 4 --events 3 --times 10     prints a JSON report

Every run is a forked child of this program, so torch is imported once. ``--events`` sets the kills per phase, at calls
drawn at random from those of the unbroken run. The phases are "rollout" (a token for every row), "reward", "update" (a
microbatch, an optimiser step) and "write" (each file, flush, rename and deletion of a checkpoint). ``--every-write``
kills once at each call of the second checkpoint, as noted in the unbroken run. ``--times`` sets the kills by the clock,
from outside, at any moment. If the run has already ended by then, it is killed again at half the time. ``--disks``
does not kill, but lets so many calls of "write" fail, as on a full disk; the error must name a file of the run.
``--pairs`` kills one of two processes so many times, in all phases; they are forked too, without torchrun.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
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
from ppo.distributed import Processes, process_group
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
    """Counts the calls of a run by phase, and kills the process before or after one chosen call.

    ``is_disk``: at that call the disk is full, and nobody is killed.
    """

    def __init__(self, kill_at: tuple[str, int] | None = None, *, is_disk: bool = False) -> None:
        self.is_disk = is_disk
        self.counts = dict.fromkeys(PHASES, 0)
        self.saves: list[list[str]] = []  # the calls of each numbered checkpoint, by name
        self.first_of_saves: list[int] = []  # for each numbered checkpoint, the calls of "write" before it
        self.kill_at = kill_at

    def hit(self, phase: str, path: object = None) -> None:
        """A call of a phase. ``path``: what the system would name in an error of it."""
        is_now = self.kill_at == (phase, self.counts[phase])
        self.counts[phase] += 1
        if is_now and self.is_disk:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if is_now:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: object, name: str, phase: str) -> None:
        """Count a hit before and a hit after every call of this function."""
        function = getattr(owner, name)

        def watched(*arguments, **named):
            if phase == "write" and self.saves:
                self.saves[-1] += [name, name]
            path = str(arguments[0]) if owner in (os, shutil) and arguments else None
            self.hit(phase, path)
            result = function(*arguments, **named)
            self.hit(phase, path)
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


def disk_trial(case: str, folder: Path, steps: int, call: int, expected: dict) -> dict[str, object]:
    """One call of "write" fails: the run ends with an error that names a file; resumed, it ends as if unbroken."""
    shutil.rmtree(folder, ignore_errors=True)
    told = folder.with_name("told.txt")

    def run() -> None:
        try:
            train(case, folder, steps, Calls(("write", call), is_disk=True))
        except OSError as error:
            told.write_text(str(error), encoding="utf-8")
            raise SystemExit(1) from error

    told.write_text("", encoding="utf-8")
    status = in_child(run)
    text = told.read_text(encoding="utf-8")
    saved = [path.name for path in list_checkpoints(folder / "checkpoints")]
    resumed = in_child(lambda: train(case, folder, steps, Calls()))
    found = fingerprint(folder) if resumed == 0 else {}
    differs = [name for name in expected if found.get(name) != expected[name]]
    is_told = status == 0 or str(folder) in text  # some failures do no harm: a file that could not be shared is copied
    return {"disk": call, "status": status, "told": text if is_told else f"NO FILE: {text}", "checkpoints": saved,
            "resumed": resumed, "differs": differs + ([] if is_told else ["message"])}  # fmt: skip


def in_pair(case: str, out: Path, steps: int, calls: tuple[Calls, Calls]) -> list[int]:
    """The exit statuses of two processes that train together."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = str(asked.getsockname()[1])

    def run(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with process_group():
            train(case, out, steps, calls[rank])

    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the process that is left prints why it ends
            try:
                run(rank)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def pair_trial(folder: Path, steps: int, kill: tuple[str, int], rank: int, expected: dict) -> dict[str, object]:
    """One of two processes is killed; both start again and end as if nothing had been."""
    shutil.rmtree(folder, ignore_errors=True)
    chosen = (Calls(kill) if rank == 0 else Calls(), Calls(kill) if rank == 1 else Calls())
    statuses = in_pair("tiny", folder, steps, chosen)
    resumed = in_pair("tiny", folder, steps, (Calls(), Calls()))
    found = fingerprint(folder) if resumed == [0, 0] else {}
    differs = [name for name in expected if found.get(name) != expected[name]]
    return {"kill": kill, "rank": rank, "status": statuses, "resumed": resumed, "differs": differs}


def pair_trials(folder: Path, steps: int, count: int, generator: random.Random) -> list[dict[str, object]]:
    """Kills of one of two processes, in all phases; the first one alone writes."""
    if in_pair("tiny", folder / "pair", steps, (Calls(), Calls())) != [0, 0]:
        sys.exit("the unbroken run of two processes failed")
    counts = json.loads((folder / "pair" / "calls.json").read_text(encoding="utf-8"))["counts"]
    expected, trials = fingerprint(folder / "pair"), []
    for number in range(count):
        phase = PHASES[number % len(PHASES)]
        rank = 0 if phase == "write" else generator.randrange(2)
        kill = phase, generator.randrange(max(1, counts[phase] - 2))
        trials.append(pair_trial(folder / "killed", steps, kill, rank, expected))
    return trials


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
    parser.add_argument("--disks", type=int, default=0, help="writes that fail as on a full disk")
    parser.add_argument("--pairs", type=int, default=0, help="kills of one of two processes, of the case tiny")
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
    generator = random.Random(options.seed + 1)
    report += [
        disk_trial(options.case, options.folder / "killed", options.steps, call, expected)
        for call in (generator.randrange(calls["counts"]["write"]) for _ in range(options.disks))
    ]
    report += pair_trials(options.folder, options.steps, options.pairs, generator) if options.pairs else []
    names = calls["saves"][1] if len(calls["saves"]) > 1 else []
    print(json.dumps({"seconds": seconds, "counts": calls["counts"], "second_save": names, "trials": report}))


if __name__ == "__main__":
    main(sys.argv[1:])
