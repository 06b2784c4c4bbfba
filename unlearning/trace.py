"""``demem.py trace``: one rollout and one update of a run, opened up token by token: text, trace.html and trace.json.

The settings come from the run's folder and, with ``--resume``, the last checkpoint does too. Nothing of the run is
changed. In a folder without a run, the step is the first one that ``run`` would do there. This module knows runs; the
trace itself is :mod:`ppo.trace`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ppo
from eval.evaluate import probe
from eval.results import check_folder, check_same, read_before, read_settings, write_json
from ppo.checkpoint import list_checkpoints
from ppo.distributed import Processes
from ppo.io.fields import check_types, require
from ppo.io.files import replace_text
from ppo.io.options import given_values
from ppo.trace import render_trace_page, render_trace_text
from unlearning.floor import chance_floor
from unlearning.options import Options
from unlearning.run import Run, join_settings, load_run
from unlearning.trace_states import is_own, mean_rewards, told_states

OUT = "runs/trace"  # the folder where none is named: a trace alone is no run to go on with


@dataclass(frozen=True)
class TraceOptions:
    """What the trace shows."""

    rows: int = 3  # responses to show, from the worst score to the best; of preset deep, texts by mean reward
    after: int = 0  # ordinary steps before the traced one; in the first step the critic says 0 and little is clipped

    def __post_init__(self) -> None:
        check_types(self)
        require(self.rows >= 1, self, "rows", "must be at least 1")
        require(self.after >= 0, self, "after", "must be at least 0")


def prepare_trace(parsed: argparse.Namespace) -> tuple[Run, TraceOptions]:
    """The run to trace and what to show of it. A setting on the command line overrides the folder's."""
    if Processes.current().count > 1:
        raise ValueError("trace works in one process: start it without torchrun")
    asked = TraceOptions(**given_values(parsed, TraceOptions))
    given, given_config = given_values(parsed, Options), given_values(parsed, ppo.Config)
    out = Path(given.setdefault("out", OUT))
    saved = read_settings(out) if (out / "config.json").is_file() else {}
    if given.get("resume", False):
        if not list_checkpoints(out / "checkpoints"):
            raise ValueError(f"--out {out} holds no checkpoint to trace from: leave out --resume")
        check_same(saved, given, given_config)
    options, changes = join_settings(saved, given, given_config)
    check_folder(out, is_new=False)
    return load_run(options, changes, Processes()), asked


def floor_of(run: Run) -> float:
    """The chance floor (BLEU) of the run: given, or known from its attack, or measured on never-trained passages."""
    never = run.study.group("never")
    if run.options.bleu_floor is not None:
        return chance_floor(run, {})
    if (run.out / "evaluation.json").is_file():
        return chance_floor(run, read_before(run.out).summary)
    return chance_floor(run, probe(run.loaded.model, run.loaded.tokenizer, never) if never else {})


def write_trace(trainer: ppo.Trainer, out: Path, asked: TraceOptions, meta: Mapping[str, Any]) -> str:
    """One step, traced; writes trace.json and trace.html and returns the text."""
    for _ in range(asked.after):
        trainer.update(trainer.rollout())
    rollout = trainer.rollout()
    if rollout.generation.context is None:
        trace = trainer.trace(rollout, choose_rows(rollout.scores.tolist(), asked.rows))
    else:
        chosen = choose_texts(mean_rewards(rollout), is_own(rollout), asked.rows)
        trace = trainer.trace(rollout, chosen, told=told_states())
    write_json(out / "trace.json", {"meta": dict(meta), "trace": trace.to_dict()})
    how = "state by state" if trace.is_forced else "token by token"
    page = render_trace_page(trace, title=f"One PPO step of DeMem, {how}", meta=meta)
    replace_text(out / "trace.html", page)
    return render_trace_text(trace)


def choose_texts(rewards: Sequence[float], own: Sequence[bool], count: int) -> list[int]:
    """Passages from the worst mean reward to the best, then the worst text of the policy's own, if there is one.

    Rewards [-2 -3 -1 -4], the first and the last ``own``, three rows: 1, 2 and 3.
    """
    parts = [[row for row, flag in enumerate(own) if flag == wanted] for wanted in (False, True)]
    of_own = 0 if not parts[1] else 1 if count > 1 and parts[0] else count * (not parts[0])
    counts = (count - of_own, of_own)
    return [
        rows[i]
        for rows, some in zip(parts, counts, strict=True)
        if some and rows
        for i in choose_rows([rewards[row] for row in rows], some)
    ]


def choose_rows(scores: Sequence[float], count: int) -> list[int]:
    """Different responses, from the worst score to the best, with different scores as far as there are any.

    Scores [5 1 1 3], two rows: 1 and 0 (the first of the worst, and the best).
    """
    order = sorted(range(len(scores)), key=lambda row: scores[row])
    firsts = [row for i, row in enumerate(order) if i == 0 or scores[row] != scores[order[i - 1]]]
    rows = firsts if len(firsts) >= count else [*firsts, *(row for row in order if row not in firsts)][:count]
    step = (len(rows) - 1) / max(min(count, len(rows)) - 1, 1)
    return [rows[round(i * step)] for i in range(min(count, len(rows)))]
