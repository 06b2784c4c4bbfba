"""Train the golden configurations with the ``ppo`` that Python imports, and write one JSON of digests.

    python -m tests.golden.run --out FOLDER [--tree TREE] [--processes N] [--resume-from FOLDER] [NAME …]

``FOLDER/digests.json`` holds, for each configuration, all that :mod:`tests.golden.digest` finds: checkpoints, metrics,
samples, and the samples that the reward got. ``--resume-from`` names the folder of such a run, for example of another
source tree; its last checkpoints are resumed for one step, and nothing else is trained. ``--tree``: the tree that
``ppo`` must come from. Configurations of N processes run under torchrun, with ``--processes N``.

This module uses only what outlives any refactoring: Trainer, Config, process_group, and the files of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

import ppo

from . import digest, tiny
from .configurations import CASES, SMALL, STEPS, Case


def make_model(case: Case) -> torch.nn.Module:
    """The model of a case as it is before training."""
    model = tiny.build(case.family, layers=case.layers, dtype=getattr(torch, case.dtype))
    if case.fitting is not None and int(os.environ.get("RANK", "0")) == case.processes - 1:
        tiny.run_out_of_memory(model, fitting=case.fitting)
    return tiny.adapt(model, case.adapter) if case.adapter else model


class Asked:
    """A reward that keeps a digest of every batch of samples that it gets."""

    def __init__(self, case: Case) -> None:
        self._reward = tiny.REWARDS[case.reward]
        self.seen: dict[str, str] = {}

    def __call__(self, samples: list[Any]) -> Any:
        shown = [[s.prompt_ids, s.ids, s.is_ended, s.text, s.prompt, dict(s.row)] for s in samples]
        self.seen[f"asked/{len(self.seen)}"] = json.dumps(shown)
        return self._reward(samples)


def texts(case: Case) -> dict[str, Any]:
    """The arguments that Trainer and Trainer.resume share besides model, prompts and reward."""
    reference = tiny.below_the_policy if case.has_reference else None
    return {"reference": reference, "retain": tiny.RETAIN, "use_tensorboard": False}


def train(case: Case, out: Path) -> dict[str, str]:
    """Train three steps with a checkpoint after each. Then make the third again from the second checkpoint: no bit may
    differ.

    Raises AssertionError if the case does not show what it is for.
    """
    reward, model = Asked(case), make_model(case)
    config = ppo.Config(**{**SMALL, **case.changes})
    tiny.seed_everything(7)
    trainer = ppo.Trainer(model, tiny.PROMPTS, reward, config, out=out, **texts(case))
    found = by_hand(trainer, out) if case.by_hand else {}
    if not case.by_hand:
        trainer.train(STEPS, progress=False)
    last, before = (out / "checkpoints" / f"step-{step:06d}" for step in (STEPS, STEPS - 1))
    resume(case, before, out.with_name(out.name + "-again"))
    with ppo.process_group() as processes:
        if not processes.is_first:
            return {}
    found |= digest.of_checkpoint(last, "checkpoint") | reward.seen
    found |= {} if case.by_hand else digest.of_logs(out)
    for name in case.must:
        values = [found.get(f"metrics/{step}/{name}", "0.0") for step in range(STEPS)]
        assert any(float(value) for value in values), f"{out.name}: {name} is 0 in every step"
    again = digest.of_checkpoint(out.with_name(out.name + "-again") / "checkpoints" / last.name, "checkpoint")
    differing = [name for name in found.keys() | again.keys() if found.get(name) != again.get(name)]
    found["resumed/differs in"] = repr(sorted(name for name in differing if name.startswith("checkpoint/")))
    return found


def by_hand(trainer: ppo.Trainer, out: Path) -> dict[str, str]:
    """The same three steps through rollout, update, trace and save, with the contents of rollouts and traces."""
    found: dict[str, str] = {}
    for step in range(STEPS):
        rollout = trainer.rollout()
        found |= digest.of_rollout(rollout, f"rollout/{step}")
        if step == 1:
            undone = trainer.trace(rollout, rows=(0, 3), top_k=3, is_undone=True).to_dict()
            trace = trainer.trace(rollout, rows=(0, 3), top_k=3).to_dict()
            assert digest.flat(undone, "trace") == digest.flat(trace, "trace"), "a trace that is undone left something"
            found |= digest.flat(trace, "trace")
        else:
            found |= digest.flat(trainer.update(rollout), f"metrics/{step}")
        trainer.save(out / "checkpoints" / f"step-{step + 1:06d}")
    return found


def resume(case: Case, checkpoint: Path, out: Path) -> dict[str, str]:
    """One more step from a checkpoint."""
    reward, model = Asked(case), make_model(case) if case.adapter else None
    tiny.seed_everything(8)  # the states in the checkpoint differ from these
    trainer = ppo.Trainer.resume(checkpoint, tiny.PROMPTS, reward, model=model, out=out, **texts(case))
    if case.processes == 1:
        align(trainer.model)
    trainer.train(1, progress=False)
    with ppo.process_group() as processes:
        if not processes.is_first:
            return {}
    (newest,) = (out / "checkpoints").iterdir()
    return digest.of_checkpoint(newest, f"checkpoint of {newest.name}") | digest.of_logs(out) | reward.seen


def digests_of(name: str, options: argparse.Namespace) -> dict[str, str]:
    """The digests of one configuration, trained or resumed."""
    if options.resume_from is None:
        return train(CASES[name], options.out / name)
    checkpoint = options.resume_from / name / "checkpoints" / f"step-{STEPS:06d}"
    return resume(CASES[name], checkpoint, options.out / name)


def align(model: torch.nn.Module) -> None:
    """Move weights to torch's own memory if they were mapped from a file to an address that is no multiple of 64 bytes.

    Some CPU kernels add in another order at such an address, so a resumed run would differ in the last bits.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--resume-from", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    source = Path(ppo.__file__).resolve()
    assert options.tree is None or source.is_relative_to(options.tree.resolve()), f"ppo comes from {source}"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    digests = {}
    with ppo.process_group() as processes:
        for name, case in CASES.items():
            if case.processes != options.processes or (options.names and name not in options.names):
                continue
            try:
                digests[name] = digests_of(name, options)
            except Exception as error:  # the other configurations are still compared
                if options.processes > 1:
                    raise
                digests[name] = {"error": f"{type(error).__name__}: {error}"}
                traceback.print_exc()
        if processes.is_first:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"digests-{options.processes}.json").write_text(json.dumps(digests, indent=1))


if __name__ == "__main__":
    main()
