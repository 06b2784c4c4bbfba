"""Files of a run for other programs and people: open-unlearning's JSON files, and a card for the saved model.

open-unlearning (locuslab) stores an evaluation as ``<NAME>_EVAL.json``, metric -> {"agg_value", "value_by_index"}, and
``<NAME>_SUMMARY.json``, metric -> agg_value. The metrics that both projects have are written under its names. This
module knows dicts and files, no models.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo.io.visible import code_span, table_cell

from .clean import judge
from .evaluate import Evaluation
from .membership import auc
from .protocols import Passage, whole
from .report.verdict import sentences
from .results import replace_text, summarise, write_json

NAME = "DEMEM"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)  # nothing else goes into the front matter
Record = Mapping[str, Any]

LIMITS = """\
- **No proof of deletion.** The figures are what these attacks found on these passages. The weights may still hold text
  that no prompt here brought out. Longer true prefixes, more samples, fine-tuning or quantisation may bring it back.
- Passages outside the forget set were not searched for. Text that resembles the forget set may be forgotten too, and
  harmless memorised text may be lost.
- Whoever has the same passages, tokenized alike, can recognise them by the hash. It does not protect a text that can be
  guessed."""


def forget_set_hash(passages: Sequence[Passage]) -> str:
    """SHA-256 of a set of passages: their token ids as JSON lists, one per line, sorted. Order does not matter."""
    lines = sorted(json.dumps([int(i) for i in whole(p)], separators=(",", ":")) for p in passages)
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def open_unlearning(found: Evaluation, *, groups: Sequence[str] = ("forget", "keep")) -> dict[str, dict[str, Any]]:
    """An evaluation in open-unlearning's schema, from the records of passages: numbers only, no text.

    ``<group>_prob`` (prob, avg_loss), ``<group>_exact_memorization`` and ``<group>_extraction_strength`` (score) are
    over the suffix given the prefix; the last two have no prefix for the forget group. Extraction strength is as in
    open-unlearning's loop: 1/n, not 0, when the last token is wrong. ``mia_<score>`` is the AUC of forget against never
    trained ("holdout" there), 1 where forget is the likelier, with its own statistics at its own k
    (:func:`eval.quirks.open_unlearning_scores`), which are not those of this project's report. Indices count the
    records of a group.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for group in groups:
        rows = [r for r in found.records if r["group"] == group]
        if not rows:
            continue
        own = f"{group}_" if group != "forget" else ""
        metrics[f"{group}_prob"] = _metric([_probability(r) for r in rows], "prob")
        metrics[f"{own}exact_memorization"] = _metric([{"score": r["ma_suffix"]} for r in rows], "score")
        metrics[f"{own}extraction_strength"] = _metric([{"score": _strength(r)} for r in rows], "score")
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
        sides = {
            side: [{"score": r[name]} for r in found.records if r["group"] == group and r.get(name) is not None]
            for side, group in (("forget", "forget"), ("holdout", "never"))
        }
        if all(sides.values()):
            members, others = (np.array([-v["score"] for v in sides[side]]) for side in ("forget", "holdout"))
            value = auc(members, others)
            metrics[name] = {side: _metric(values, "score") for side, values in sides.items()}
            metrics[name] |= {"auc": value, "agg_value": value}
    return dict(sorted(metrics.items()))


def _probability(record: Record) -> dict[str, float]:
    """exp(-mean NLL), as in open-unlearning, and the mean NLL itself."""
    return {"prob": math.exp(-record["nll_suffix"]), "avg_loss": record["nll_suffix"]}


def _strength(record: Record) -> float:
    return max(float(record["extraction_strength"]), 1 / record["length_truth"])


def _metric(values: Sequence[dict[str, float]], name: str) -> dict[str, Any]:
    mean = sum(v[name] for v in values) / len(values)
    return {"agg_value": mean, "value_by_index": {str(i): v for i, v in enumerate(values)}}


def write_open_unlearning(folder: Path, found: Evaluation) -> None:
    """Write ``DEMEM_EVAL.json`` and ``DEMEM_SUMMARY.json`` into a folder."""
    metrics = open_unlearning(found)
    write_json(folder / f"{NAME}_SUMMARY.json", {name: m["agg_value"] for name, m in metrics.items()})
    write_json(folder / f"{NAME}_EVAL.json", metrics)


def model_card(
    *,
    base: str,
    method: str,
    passages: Sequence[Passage],
    thresholds: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    meta: Mapping[str, Any],
) -> str:
    """README.md of an unlearned model: method, hash of the forget set, thresholds, verdict, before and after, limits.

    base        the model before unlearning: a hub id, or a name
    method      the method in a phrase
    passages    the forget set; the card shows its hash and its size, no text
    thresholds  the training's stopping criteria: name to number
    meta        where the run comes from: command, commit, seed, versions
    """
    goal = f"to make it stop reproducing {len(passages)} passages{_success(before, after)}"
    rows = [
        f"| {table_cell(name)} | {_number(pair['before'])} | {_number(pair.get('after'))} |"
        for name, pair in summarise(before, after).items()
        if isinstance(pair, dict)
    ]
    ratio = summarise(before, after).get("holdout/perplexity_ratio")
    kept = [] if ratio is None else [f"- Held-out perplexity: \N{MULTIPLICATION SIGN} {ratio:.3f} of the original's"]
    lines = [
        "---",
        "tags: [unlearning, dememorization, ppo]",
        *([f"base_model: {base}"] if _HUB_ID.fullmatch(base) and not Path(base).exists() else []),
        "---",
        "",
        "# An unlearned model",
        "",
        f"Made from {code_span(base)} by {method}, {goal}.",
        "",
        f"- Forget set: {len(passages)} passages, SHA-256 of their token ids `{forget_set_hash(passages)}`",
        *(f"- {name}: {value}" for name, value in thresholds.items()),
        *kept,
        "",
        "## Verdict",
        "",
        *(f"- {line}" for line in sentences(judge(after.to_dict(), original=before.to_dict()))),
        "",
        "## Before and after",
        "",
        "| metric | before | after |",
        "|---|---|---|",
        *rows,
        "",
        "What each name means: `evaluation.json`, beside the report that came with this model.",
        "",
        "## Limits",
        "",
        LIMITS,
        "",
        "## Where it comes from",
        "",
        *(f"- {name}: {code_span(str(value))}" for name, value in meta.items()),
        "",
    ]
    return "\n".join(lines)


def _success(before: Evaluation, after: Evaluation) -> str:
    """How far the goal was reached, as part of a sentence; "" if it was not measured."""
    parts = []
    for name, done in (
        ("forget/secret_emitted", "a secret {still}comes out of"),
        ("forget/exact", "greedy decoding {still}reproduces"),
    ):
        was, now = (found.summary.get(name) for found in (before, after))
        if was is not None and now is not None:
            told = done.format(still="still " if now else "")
            parts.append(f"; {told} {100 * now:.1f} % of them (before: {100 * was:.1f} %)")
    return "".join(parts)


def write_card(folder: Path, card: str) -> None:
    """Write ``README.md`` into the folder of the saved model."""
    replace_text(folder / "README.md", card)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
