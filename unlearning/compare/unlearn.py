"""DeMem as a method of ``demem.py compare``: a training in a folder that goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from data.study import windows
from eval.cost import Cost, Tokens, count_parameters, ppo_tokens
from eval.evaluate import Evaluation
from eval.results import write_json
from ppo.distributed import Processes
from ppo.log import read_jsonl
from rewards.bertscore import BertScore
from unlearning.compare.bench import UnlearnedModel
from unlearning.compare.budget import ppo_budget
from unlearning.compare.terms import THEIR_OWN, Terms, on_terms
from unlearning.deep.forced import WINDOWS
from unlearning.options import PRESETS, Options
from unlearning.run import Run, load_model, load_run

Train = Callable[[Run, Evaluation], None]
PAPER = ("paper", "paper-as-run")  # presets
LORA_RATE = 5.0  # times the learning rate of full training, for an adapter
REWARDS = {  # of the presets that are not the paper's
    "demem": "the BLEU that each word adds, down to the chance floor",
    "deep": "log-ratio to the bounded reference, at every state; no score",
    "deep-supervised": "no reward: cross-entropy with the bounded reference, at every state",
    "grpo": "1 or 0: whether nothing forbidden comes out",
}


def settings_of(preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with the changes of the command line. The paper's presets keep what the paper sets."""
    fixed = PRESETS[preset] if preset in PAPER else {}
    return {**PRESETS[preset], **changes, **fixed}


@dataclass(frozen=True)
class Unlearn:
    """DeMem as a method: a preset with one value of a knob, trained in a folder where it can be resumed.

    ``keep``: seed → the text to keep that its training draws, to count it; None: it is not counted. ``encoder``: of the
    paper's presets; None: their reward is BLEU.
    """

    run: Run
    changes: dict[str, Any]
    before: dict[str, float]
    train: Train
    terms: Terms = THEIR_OWN
    keep: Callable[[int], list[list[int]]] | None = None
    encoder: str | None = None

    def __call__(self, preset: str, knob: str, value: float, folder: Path, seed: int) -> UnlearnedModel:
        options, config = self.asked(preset, knob, value)
        is_begun = (folder / "config.json").is_file()
        options = replace(options, out=str(folder), resume=is_begun)
        run = replace(load_run(options, config | {"seed": seed}, Processes()), study=self.run.study)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"options": asdict(options), "config": run.config.to_dict()})
        log = folder / "metrics.jsonl"
        earlier = sum(_seconds(row) for row in read_jsonl(log)) if log.is_file() else 0.0
        started = time.perf_counter()
        self.train(run, Evaluation(self.before, {}, {}, {}, {}))
        seconds, rows = earlier + time.perf_counter() - started, read_jsonl(log)
        cost = Cost(seconds, self._tokens(run, rows), count_parameters(run.loaded.model))
        model = load_model(options, folder / "model").model
        reward = reward_label(options, run.encoder)
        notes = {"steps": len(rows), "is_stopped": len(rows) < options.most_steps, "reward": reward}
        kept = self.keep(seed) if self.keep is not None and run.config.retain_coef else []
        return UnlearnedModel(model, cost, notes=notes, budget=ppo_budget(run, rows, kept))

    def asked(self, preset: str, knob: str, value: float) -> tuple[Options, dict[str, Any]]:
        """The options and the settings of PPO with one value of a knob, on the comparison's terms."""
        is_option = knob in ("steps", "lora_rank")
        is_settled = knob == "steps" and self.terms.updates is not None  # by the number of updates
        own = {knob: round(value)} if is_option and not is_settled else {}
        free = {"windows": None, "fluency_weight": 0.0} if preset.startswith("deep") else {}  # it has no such settings
        options = replace(
            self.run.options, preset=preset, encoder=self.encoder if preset in PAPER else None, **own, **free
        )
        config = settings_of(preset, self.changes) | ({} if is_option else {knob: value})
        if options.lora_rank:
            config["learning_rate"] = LORA_RATE * float(config["learning_rate"])
        places = max(len(windows(p, len(p.ids))) for p in self.run.study.group("forget"))
        return on_terms(self.terms, options, config, places=places)

    def _tokens(self, run: Run, rows: Sequence[dict[str, float]]) -> Tokens:
        """The cost of the training, of the looks at the forget set, and of the model's own text to keep."""
        forget = run.study.group("forget")
        total = ppo_tokens(run.config, rows, prompt_length=prompt_length(run))
        look = sum(len(p.prefix) + len(p.suffix) for p in forget) + sum(map(len, run.study.holdout[:32]))
        total = total + Tokens(look) * sum("forget/exact" in row for row in rows)
        return total + (Tokens(run.options.num_own * run.config.retain_tokens) if run.config.retain_coef else Tokens())


def reward_label(options: Options, encoder: BertScore | None) -> str:
    """What a preset's reward measures, for readers. ``encoder``: of the paper's BERTScore; None: it is BLEU."""
    if options.is_paper:
        return paper_reward(options.encoder, encoder)
    label = REWARDS[options.preset]
    return f"{label}; less outside a band of likelihood" if options.fluency_weight else label


def paper_reward(name: str | None, encoder: BertScore | None) -> str:
    """The similarity, its encoder and layer (0: the embeddings).

    A folder that is called ``model`` goes by the name of the folder around it.
    """
    if name is None or encoder is None:
        return "BLEU, in the place of BERTScore"
    path, layer = PurePath(name.rstrip("/")), encoder.layer
    known = path.parent.name if path.name == "model" else path.name
    if layer < 0:
        layer += 1 + int(encoder.encoder.config.num_hidden_layers)
    return f"BERTScore, {known}, layer {layer}"


def prompt_length(run: Run) -> float:
    """Tokens of a prompt, mean over the rows: a prefix, or the one token before forced states."""
    prefix = float(np.mean([len(p.prefix) for p in run.study.group("forget")]))
    if not run.options.is_deep or run.options.windows == 1:
        return prefix
    return (WINDOWS + run.options.own_rows * prefix) / (WINDOWS + run.options.own_rows)


def _seconds(row: dict[str, float]) -> float:
    return sum(value for name, value in row.items() if name.startswith("time/"))
