"""DeMem as a method of ``demem.py compare``: a training in a folder that goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.cost import Cost, Tokens, count_parameters, ppo_tokens
from eval.evaluate import Evaluation
from eval.results import write_json
from ppo.distributed import Processes
from ppo.log import read_jsonl
from unlearning.compare.bench import UnlearnedModel
from unlearning.options import PRESETS
from unlearning.run import Run, load_model, load_run

Train = Callable[[Run, Evaluation], None]
LORA_RATE = 5.0  # times the learning rate of full training, for an adapter


def settings_of(preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with the changes of the command line. The paper's presets keep what the paper sets."""
    fixed = PRESETS[preset] if preset in ("paper", "paper-as-run") else {}
    return {**PRESETS[preset], **changes, **fixed}


@dataclass(frozen=True)
class Unlearn:
    """DeMem as a method: a preset with one value of a knob, trained in a folder where it can be resumed."""

    run: Run
    changes: dict[str, Any]
    before: dict[str, float]
    train: Train

    def __call__(self, preset: str, knob: str, value: float, folder: Path, seed: int) -> UnlearnedModel:
        own = {knob: round(value)} if knob in ("steps", "lora_rank") else {}
        of_rollouts = {"windows": None, "fluency_weight": 0.0} if preset == "deep" else {}  # deep has neither
        is_begun = (folder / "config.json").is_file()
        options = replace(self.run.options, preset=preset, out=str(folder), resume=is_begun, **own, **of_rollouts)
        config = settings_of(preset, self.changes) | {"seed": seed} | ({} if own else {knob: value})
        if options.lora_rank:
            config["learning_rate"] = LORA_RATE * float(config["learning_rate"])
        run = replace(load_run(options, config, Processes()), study=self.run.study)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"options": asdict(options), "config": run.config.to_dict()})
        log = folder / "metrics.jsonl"
        earlier = sum(_seconds(row) for row in read_jsonl(log)) if log.is_file() else 0.0
        started = time.perf_counter()
        self.train(run, Evaluation(self.before, {}, {}, {}, {}))
        seconds, rows = earlier + time.perf_counter() - started, read_jsonl(log)
        cost = Cost(seconds, self._tokens(run, rows), count_parameters(run.loaded.model))
        model = load_model(options, folder / "model").model
        return UnlearnedModel(model, cost, notes={"steps": len(rows), "is_stopped": len(rows) < options.most_steps})

    def _tokens(self, run: Run, rows: Sequence[dict[str, float]]) -> Tokens:
        """The cost of the training, of the looks at the forget set, and of the model's own text to keep."""
        forget = run.study.group("forget")
        total = ppo_tokens(run.config, rows, prompt_length=float(np.mean([len(p.prefix) for p in forget])))
        look = sum(len(p.prefix) + len(p.suffix) for p in forget) + sum(map(len, run.study.holdout[:32]))
        total = total + Tokens(look) * sum("forget/exact" in row for row in rows)
        return total + (Tokens(run.options.num_own * run.config.retain_tokens) if run.config.retain_coef else Tokens())


def _seconds(row: dict[str, float]) -> float:
    return sum(value for name, value in row.items() if name.startswith("time/"))
