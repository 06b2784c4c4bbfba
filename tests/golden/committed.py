"""Small checkpoints that the old code wrote, kept in the repository, and the numbers of one more step from each.

    python -m tests.golden.committed --old 503a727

writes ``tests/golden/checkpoints`` anew, with the code of that commit. Numbers are compared within a tolerance, because
another CPU rounds differently.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from . import digest
from .compare import Side, commit_of, copy_program, extract
from .configurations import COMMITTED, STEPS

FOLDER = Path(__file__).resolve().parent / "checkpoints"
NUMBERS = FOLDER / "numbers.json"
_ROUNDING = ("rollout/logprob_gap", "rollout/sampler_gap")  # these numbers are only rounding


def numbers_of(before: Path, run: Path) -> dict[str, Any]:
    """The numbers of one more step from the checkpoint ``before``, read from the folder of that ``run``.

    They are the step's metrics and scores, the KL coefficient, how far each tensor of policy, critic and Adam's moments
    moved, and the sums of the tensors of policy and critic. Each has ten digits.
    """
    after = run / "checkpoints" / f"step-{STEPS + 1:06d}"
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    found: dict[str, Any] = {f"metrics/{k}": x for k, x in digest.repeatable(last).items() if k not in _ROUNDING}
    state = json.loads((after / "state.json").read_text(encoding="utf-8"))
    found |= {f"state/{key}": state[key] for key in ("step", "num_updates", "kl_coef")}
    for i, line in enumerate((run / "samples.jsonl").read_text(encoding="utf-8").splitlines()):
        found[f"samples/{i}/score"] = json.loads(line)["score"]
    for file in sorted(before.rglob("*.safetensors")):
        name = file.relative_to(before)
        if name.name in ("rng.safetensors", "reference.safetensors", "frozen.safetensors"):
            continue
        old, new = load_file(file), load_file(after / name)
        found[f"{name}/tensors"] = len(new)
        for key, tensor in sorted(old.items()):
            found[f"{name}:{key}/change"] = (new[key].double() - tensor.double()).norm().item()
            if "optimizer" not in name.name:
                found[f"{name}:{key}/sum"] = new[key].double().sum().item()
    return {key: float(f"{value:.10g}") for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", default="503a727")
    commit = commit_of(parser.parse_args().old)
    assert commit is not None, "this repository has no such commit"
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        side = Side(place / "tree", place / "old", copy_program(place / "program"))
        side.tree.mkdir()
        extract(commit, side.tree)
        side.train(COMMITTED)
        side.resume(side.out / "train", COMMITTED)
        shutil.rmtree(FOLDER, ignore_errors=True)
        numbers = {}
        for name in COMMITTED:
            shutil.copytree(side.out / "train" / name / "checkpoints" / f"step-{STEPS:06d}", FOLDER / name)
            numbers[name] = numbers_of(FOLDER / name, side.out / "resume" / name)
    NUMBERS.write_text(json.dumps({"commit": commit, **numbers}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
