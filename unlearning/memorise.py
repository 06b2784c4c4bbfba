"""``demem.py memorise``: make a test subject of a model that has memorised nothing."""

from __future__ import annotations

from dataclasses import replace

from eval.evaluate import probe
from eval.results import write_json
from models.memorise import memorise
from unlearning.run import Run, say


def run_memorise(run: Run) -> None:
    """Fine-tune the model on the passages until it reproduces them. ``model/`` is written for a later ``--model``."""
    chosen = [p for p in run.study.passages if p.group != "never"]
    variants = [[list(p.prefix + p.suffix), list(p.pre_prefix + p.prefix + p.suffix)] for p in chosen]

    def share() -> float:
        found = probe(run.loaded.model, run.loaded.tokenizer, [replace(p, group="all") for p in chosen])
        return found["all/exact"]

    history = memorise(
        run.loaded.model,
        variants,
        measure=share,
        learning_rate=run.config.learning_rate,
        batch=run.config.minibatch,
        beside=run.study.retain,
        num_beside=run.options.memorise_beside,
        max_epochs=run.options.memorise_epochs,
        use_bfloat16=run.config.autocast == "bfloat16",
        seed=run.config.seed,
        checkpoint=run.out / "checkpoint",
        say=say,
    )
    run.loaded.save(run.out / "model")
    write_json(run.out / "memorise.json", {"meta": run.meta(), "history": history})
    reached = history[-1]["share"]
    say(f"model: {run.out / 'model'}; {reached:.1%} of {len(chosen)} passages come back, see memorise.json")
