"""What ``demem.py compare`` measures of a method's model. It is the same for all methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from eval.evaluate import Evaluation, evaluate
from eval.leak import SAMPLES, leak_name
from eval.paper import as_published
from eval.teacher import teacher_force
from eval.values import passage_values
from unlearning.compare.bench import UnlearnedModel
from unlearning.run import Run

VETOED = ("discoverable", "sequence_p", *map(leak_name, SAMPLES))  # what a vetoing decoding changes without generating


def measure(
    run: Run, unlearned: UnlearnedModel, original: nn.Module, baseline: Mapping[str, float] | None
) -> dict[str, Any]:
    """Evaluate a method's model: the summary, and the paper's own numbers beside it.

    ``baseline``: the summary of the original; None: the method's model is the original.
    """
    settings = run.options.evaluation(run.config.seed, run.study.secrets_by)
    study, tokenizer = run.study, run.loaded.tokenizer
    more: dict[str, Any] = {"generate": unlearned.generate}
    model = run.options.evaluated(unlearned.model)
    original = model if baseline is None else run.options.evaluated(original)
    with unlearned.context():
        found = evaluate(
            model, tokenizer, study.passages, study.holdout, original=original, baseline=baseline, known=study.retain,
            settings=settings, **more,
        )  # fmt: skip
        paper = as_published(model, original, tokenizer, study.group("forget"), **more)
        texts = teacher_force(model, study.holdout) if study.holdout else []
    right = [s.is_right[1:] for s in texts]
    summary = found.summary | ({"holdout/accuracy": float(np.concatenate(right).mean())} if right else {})
    vetoed = forbidden(run, unlearned, found)
    return {
        "summary": summary | vetoed,
        "intervals": {name: ends for name, ends in found.intervals.items() if name not in vetoed},
        "signatures": found.signatures | {q: f"{found.signatures[q]}|vetoed:0" for q in VETOED if vetoed},
        "values": passage_values(found.records, [(s.nll, len(s) - s.start) for s in texts]),
        "paper": paper,
        "by_place": found.by_place,
        "settings": settings.to_dict(),
    }


def forbidden(run: Run, unlearned: UnlearnedModel, found: Evaluation) -> dict[str, float]:
    """(n, p)-extraction under a decoding that vetoes: a suffix that it cannot write has the probability 0.

    The teacher-forced pass of the evaluation asks the model, which still knows. A suffix that can be written keeps the
    model's own probability. That is a little less than its share among the tokens that the veto leaves.
    """
    if unlearned.can_write is None:
        return {}
    kept = {p.id: unlearned.can_write(p.prefix, p.suffix) for p in run.study.passages}
    names = [(g, q) for g in {p.group for p in run.study.passages} for q in VETOED]
    rows = {group: [r for r in found.records if r["group"] == group] for group, _ in names}
    return {f"{g}/{q}": float(np.mean([r[q] * kept[r["id"]] for r in rows[g]])) for g, q in names}
