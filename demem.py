"""DeMem: make a language model stop reproducing passages that it has memorised, and measure what that cost.

The method (Kassem, Mahmoud and Saad, EMNLP 2023), in the order of the functions below:

    attack     prompt the model with the prefixes of memorised passages and see which suffixes come back
    train      PPO on the forget set, with text to keep beside it: at every state of it (--preset deep, the default),
               or with free rollouts and a negative-similarity reward, as published (--preset demem)
    evaluate   the same attack again, and what became of everything else
    report     before and after, as a table and as one HTML file

``attacks`` tries what a determined attacker would, on both models: sampling, beam search, other prompts, relearning, …
``memorise`` makes a test subject of a model that has memorised nothing. ``trace`` opens one PPO step up, token by
token. ``compare`` sets other methods beside DeMem. ``python demem.py`` takes all four steps on the built-in lab;
``python demem.py run --help`` shows what people set, ``--help-all`` every option. A run has one folder (``--out``):

    config.json      every setting            metrics.jsonl (and .csv), samples.jsonl   the training, step by step
    evaluation.json  before, after, summary   passages.jsonl                 every passage before and after
    report.html      one file, opens offline  model/                         a plain Hugging Face folder

``torchrun --nproc-per-node 2 demem.py run`` trains in two processes. Only the first one attacks, evaluates and writes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from torch import nn

import ppo
from eval import secrets
from eval.clean import judge
from eval.evaluate import Evaluation, evaluate, probe
from eval.exports import model_card, write_card, write_open_unlearning
from eval.report import render_passage, render_table
from eval.report.curves import critic_note
from eval.report.depth import told
from eval.report.folder import LivePage, write_page
from eval.report.page import NO_FLOOR
from eval.report.verdict import sentences
from eval.results import noted_siblings, read_before, read_settings, write_results
from eval.stored import read_attacks, read_passages, read_results
from models.lora import unload
from ppo.checkpoint import list_checkpoints
from ppo.distributed import Processes
from ppo.io.console import print_any_text, show_tracebacks, shown_warnings
from ppo.io.surrogates import refuse_surrogates
from ppo.log import HEADLINE, read_jsonl
from ppo.run.interrupt import sigterm_as_ctrl_c
from ppo.run.lock import only_writer
from ppo.types import Step
from unlearning.attack import run_attacks
from unlearning.command_line import COMMANDS, parse
from unlearning.compare.comparison import compare
from unlearning.deep.recipe import Parts, deep_parts
from unlearning.floor import chance_floor, private_bleu, told_floor
from unlearning.memorise import run_memorise
from unlearning.notebook import sample_sliced, with_special_tokens
from unlearning.options import METHOD
from unlearning.outcome import exit_status, silent
from unlearning.recipe import (
    StopRule,
    make_reward,
    noted,
    noted_standing,
    put_adapter,
    rows_to_forget,
    text_to_keep,
)  # fmt: skip
from unlearning.run import Run, load_model, prepare, say, say_if
from unlearning.scan import run_scan
from unlearning.trace import floor_of, prepare_trace, write_trace

TOLD: set[str] = set()
"""The warnings that this process has shown: each is told once, whatever commands it runs."""
NUM_LOOK = 32
"""Held-out texts of a look during training. Their numbers have names of their own: the evaluation takes all texts."""
LOOK_NAMES = {"holdout/perplexity": "look/perplexity", "holdout/nll": "look/nll", "holdout/tokens": "look/tokens",
              "utility/cloze": "look/cloze", "utility/cloze_words": "look/cloze_words"}  # fmt: skip

# ---------------------------------------------------------------------- the method


def attack(run: Run) -> Evaluation:
    """Measure what the model gives away before unlearning, and write it down."""
    found = measure(run, "attack", original=run.loaded.model)
    write_results(run.out, run.meta() | floor_facts(run, found.summary), found)
    return found


def floor_facts(run: Run, before: Mapping[str, float]) -> dict[str, Any]:
    """The chance floor for readers, and whether secrets fit below it: then no page draws it."""
    is_none = (floor := before.get("never/bleu", 0.0)) and floor > private_bleu(run.study, run.loaded.tokenizer.decode)
    return {"chance floor": told_floor(run, before)} | ({NO_FLOOR: True} if is_none else {})


def train(
    run: Run,
    before: Evaluation,
    page: LivePage | None = None,
    make: Callable[[Run, float], ppo.Trainer] | None = None,
) -> None:
    """Train with PPO: all steps with the preset deep, else until the forget set cannot be extracted.

    ``page`` is shown at once and after every look at the forget set. The notebook's training never looks, so there it
    is shown after every step. ``make`` builds the trainer from the run and the chance floor; None:
    :func:`make_trainer`.
    """
    floor = chance_floor(run, before.summary)
    forget, tokenizer = run.study.group("forget"), run.loaded.tokenizer
    is_published = run.options.preset == "paper-as-run"  # neither looks at the forget set nor a rule that stops it
    is_whole = not run.options.ends_early  # deep's learning rate falls along all of its steps
    every = 1 if is_published else run.options.check_every

    def look(trainer: ppo.Trainer) -> dict[str, float]:
        if trainer.step % every:
            return {}
        found = probe(trainer.model, tokenizer, forget, run.study.holdout[:NUM_LOOK])
        return {LOOK_NAMES.get(name, name): value for name, value in found.items()}

    def show(step: Step) -> None:
        if page is not None and (step.number + 1) % every == 0:
            page.show(step.number + 1)

    trainer = (make or make_trainer)(run, floor)
    rule = StopRule(run.out / "metrics.jsonl", run.options.target_exact, floor, secrets.bounds(before.summary))
    if page is not None:
        page.show(trainer.step)
    steps = max(run.options.most_steps - trainer.step, 0)
    if is_published:
        trainer.train(steps, on_step=show, show=headline(run.config))
    elif is_whole or not (trainer.step > 0 and run.processes.first(lambda: rule.is_met(trainer.step))):
        known = run.processes.first(lambda: (rule.looks(trainer.step) or [before.summary])[-1]["forget/exact"])
        trainer.train(
            steps, probe=look, stop_when=None if is_whole else lambda _: rule.is_met(trainer.step), on_step=show,
            show=headline(run.config), known={"forget/exact": known},
        )  # fmt: skip
        run.processes.first(lambda: say_if(rule.missed(trainer.step)))
    log = run.out / "metrics.jsonl"
    if run.processes.is_first and log.is_file() and (note := critic_note(read_jsonl(log))):
        say(note)
    if run.options.lora_rank:
        unload(trainer.model, keep=True)
    trainer.save_model(run.out / "model")


def headline(config: ppo.Config) -> dict[str, str]:
    """The labels of the progress bar: the score, how far the policy moves, the share that still comes back.

    Without a KL penalty nothing measures the distance to the reference. The bar then shows how far each update goes.
    """
    if config.value_head == "none":  # preset deep: every score is 0
        return {"true_token_p": "forced/true_token_p", "kl": "kl/per_token", "extracted": "forget/exact"}
    moved = HEADLINE if config.kl_coef else {"score": HEADLINE["score"], "update_kl": "policy/approx_kl"}
    return {**moved, "extracted": "forget/exact"}


def make_trainer(run: Run, floor: float) -> ppo.Trainer:
    """The trainer of a run, new or as its last checkpoint left it."""
    parts = deep_parts(run) if run.options.is_deep else Parts(rows_to_forget(run), make_reward(run, floor), {})
    rows, reward = parts.rows, parts.reward
    kept = run.processes.first(lambda: noted(run, text_to_keep(run)))
    more: dict[str, Any] = {
        "tokenizer": run.loaded.tokenizer,
        "retain": kept if run.config.retain_coef else None,
        "out": run.out,
        **parts.seams,
    }
    if run.options.preset == "paper-as-run":
        reward = with_special_tokens(reward, run.loaded.tokenizer.decode)
        more["sampler"] = sample_sliced
    put_adapter(run)
    if run.options.resume and run.processes.first(lambda: bool(list_checkpoints(run.out / "checkpoints"))):
        device = str(next(run.loaded.model.parameters()).device)
        base = run.loaded.model if run.options.lora_rank else None
        return ppo.Trainer.resume(run.out, rows, reward, model=base, device=device, **more)
    if run.options.resume:  # killed before its first checkpoint: it starts again from nothing
        run.processes.first(lambda: forget_training(run.out))
    return ppo.Trainer(run.loaded.model, rows, reward, run.config, **more)


def forget_training(out: Path) -> None:
    """Delete the log of a training that left no checkpoint. What was in it is told: its checkpoints may be deleted."""
    log = out / "metrics.jsonl"
    if log.is_file() and (steps := len(read_jsonl(log))):
        say(f"{out / 'checkpoints'} holds no checkpoint: the training starts again, and its log of {steps} steps goes")
    for name in ("metrics.jsonl", "metrics.csv", "samples.jsonl"):
        (out / name).unlink(missing_ok=True)
    if (out / "tensorboard").is_dir():
        shutil.rmtree(out / "tensorboard")


def measure(run: Run, label: str, *, original: nn.Module, before: Evaluation | None = None) -> Evaluation:
    """Evaluate the run's model as it is now.

    ``original``: the model before unlearning. ``before``: its evaluation; None: the run's model is the original.
    """
    started = time.perf_counter()
    study, settings = run.study, run.options.evaluation(run.config.seed, run.study.secrets_by)
    model = run.options.evaluated(run.loaded.model)
    found = evaluate(
        model,
        run.loaded.tokenizer,
        study.passages,
        study.holdout,
        original=run.options.evaluated(original) if before else model,
        baseline=before.summary if before else None,
        known=study.retain,
        settings=settings,
    )
    say(f"{label}: {len(study.passages)} passages evaluated in {time.perf_counter() - started:.0f} s")
    return found


def report(out: Path) -> None:
    """Print the table and write report.html, both from the files of a run."""
    read_settings(out)  # first: a folder that holds no run is told as such
    results, passages = read_results(out), read_passages(out / "passages.jsonl")
    write_page(out)
    before, after = results["before"], results.get("after")
    for passage in passages[:3]:
        say("\n" + render_passage(passage))
    shown = after or before
    say("\n" + render_table(before["summary"], after["summary"] if after else None, intervals=shown["intervals"]))
    if sentence := told(shown):
        say("\n" + sentence)
    attacks = read_attacks(out).get("after" if after else "before", ())
    say("\n" + "\n".join(sentences(judge(shown, original=before if after else None, attacks=attacks))))
    say(f"\nreport: {out / 'report.html'}" + (f"   model: {out / 'model'}" if after else ""))


# ---------------------------------------------------------------------- the commands


def run_all(run: Run) -> None:
    """Attack, train, evaluate, report."""
    with live_page(run) as page:
        train(run, run.processes.first(lambda: attack_once(run, is_known=run.options.resume)), page)
        run.processes.first(lambda: run_evaluate(run))


def attack_once(run: Run, *, is_known: bool) -> Evaluation:
    """The attack of the run's folder: read where ``is_known`` and the folder holds one, measured otherwise."""
    return read_before(run.out) if is_known and (run.out / "evaluation.json").is_file() else attack(run)


def run_attack(run: Run) -> None:
    attack_once(run, is_known=run.options.resume)
    report(run.out)


def run_train(run: Run) -> None:
    with live_page(run) as page:
        train(run, run.processes.first(lambda: attack_once(run, is_known=True)), page)


@contextmanager
def live_page(run: Run) -> Iterator[LivePage | None]:
    """The page that ``--live`` shows. When the run ends, in whatever way, the page stops loading itself again."""
    page = LivePage(run.out, steps=run.options.most_steps) if run.options.live and run.processes.is_first else None
    try:
        yield page
    finally:
        if page is not None:
            page.rest()


def run_evaluate(run: Run) -> None:
    """Measure ``model/`` of the run and write the results beside those of the attack."""
    before = read_before(run.out)
    if not (run.out / "model" / "config.json").is_file():
        raise ValueError(f"{run.out / 'model'} holds no model: run train there first")
    unlearned = load_model(run.options, run.out / "model")
    original = load_model(run.options, run.options.model).model  # the run's own may be the one that was trained
    after = measure(replace(run, loaded=unlearned), "evaluate", original=original, before=before)
    facts = floor_facts(run, before.summary) | noted_standing(run.out) | noted_siblings(run.out)
    write_results(run.out, run.meta() | facts, before, after)
    write_open_unlearning(run.out, after)
    write_card(run.out / "model", card(run, before, after))
    report(run.out)


def card(run: Run, before: Evaluation, after: Evaluation) -> str:
    """The model card of an unlearned model."""
    most = secrets.bounds(before.summary)
    thresholds = {
        "Secrets": secrets.HOW.get(run.study.secrets_by, "none were looked for"),
        "Share of the forget set of which a secret may still come out": f"{most['secret_greedy']:.1%} greedily, "
        f"{most['secret_hinted']:.1%} after a hint",
        "Share of the forget set that may still come back": run.options.target_exact,
        "Chance floor": told_floor(run, before.summary),
        "PPO steps" if run.options.is_deep else "PPO steps at most": run.options.most_steps,
    }
    thresholds |= noted_siblings(run.out)
    method = f"{METHOD[run.options.preset]} (--preset {run.options.preset})"
    forget, base = run.study.group("forget"), run.options.model
    return model_card(
        base=base, method=method, passages=forget, thresholds=thresholds, before=before, after=after, meta=run.meta()
    )


def run_trace(parsed: argparse.Namespace) -> None:
    """Show one PPO step of a run, token by token, as text, trace.html and trace.json. The run stays as it is."""
    run, asked = prepare_trace(parsed)
    say(write_trace(make_trainer(run, floor_of(run)), run.out, asked, run.meta()))
    say(f"trace: {run.out / 'trace.html'}   numbers: {run.out / 'trace.json'}")


ON_A_RUN: dict[str, Callable[[Run], None]] = {
    "run": run_all,
    "attack": run_attack,
    "train": run_train,
    "evaluate": run_evaluate,
    "memorise": run_memorise,
}


# ---------------------------------------------------------------------- the command line


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 for a scan with --fail-above, 2 for bad input (one line on stderr), 130 after Ctrl-C."""
    transformers.utils.logging.disable_progress_bar()
    print_any_text(sys.stdout, sys.stderr)
    with shown_warnings(told=TOLD), sigterm_as_ctrl_c(), ppo.process_group() as processes:
        with silent(not processes.is_first, redirect_stdout, redirect_stderr):
            command, parsed = parse(arguments)
        with silent(not processes.is_first, redirect_stdout):
            out = Path(getattr(parsed, "out", COMMANDS[command].out))
            return exit_status(partial(execute, command, parsed, processes), command, out, processes)


def execute(command: str, parsed: argparse.Namespace, processes: Processes) -> int:
    """Do what was asked. All processes train, the first one alone does everything else. Returns the exit status."""
    refuse_surrogates(vars(parsed), "the command line")  # a file name that is not UTF-8 becomes one
    out = Path(getattr(parsed, "out", COMMANDS[command].out))
    if command == "report":
        processes.first(lambda: report(out))
    elif command == "trace":
        run_trace(parsed)
    else:
        with ExitStack() as stack:
            processes.first(lambda: stack.enter_context(only_writer(out)))
            return write(command, parsed, processes)
    return 0


def write(command: str, parsed: argparse.Namespace, processes: Processes) -> int:
    """Do what writes to the folder of a run. Returns the exit status."""
    if command == "scan":
        return processes.first(lambda: run_scan(parsed))
    if command == "attacks":
        processes.first(lambda: run_attacks(parsed))
    elif command == "compare":
        processes.first(lambda: compare(parsed, train=train, text_to_keep=text_to_keep))
    elif command in ("run", "train"):
        ON_A_RUN[command](prepare(command, parsed, processes))
    else:
        processes.first(partial(ON_A_RUN[command], prepare(command, parsed, processes)))
    return 0


if __name__ == "__main__":
    show_tracebacks()
    sys.exit(main(sys.argv[1:]))
