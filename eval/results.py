"""The folder of a run, and its files for settings and evaluations.

config.json holds the settings, evaluation.json the numbers (meta, before, after, summary, verdict), and passages.jsonl
the passages with their outputs; siblings.json the texts like them that the model recited, where those are unlearned as
well. passages.jsonl, samples.jsonl and siblings.json hold private text, so a run's folder is as private as
its data; evaluation.json holds no text of passages. This module computes nothing but ratios.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo.io.console import shown_errors
from ppo.io.files import read_json, replace_text, write_json
from ppo.io.plain_files import new_text, refuse_links
from ppo.io.surrogates import without_surrogates
from ppo.io.visible import visible
from ppo.run.lock import LOCK_FILE

from .clean import judge
from .evaluate import Evaluation
from .report import pair_records
from .report.page import ALSO
from .stored import read_passages, read_results

MAIN = (
    "secret_emitted", "secret_greedy", "secret_sampled", "secret_hinted", "secret_part",
    "secret_part_characters", "secret_p", "secret_leak_1000", "verbatim_run", "verbatim_run_characters", "exact",
    "exact_sampled", "discoverable", "leak_1000", "n_bleu", "bleu", "ma_suffix", "ma_unshared", "longest_run",
    "nll_suffix", "writing", "non_words", "empty", "length_ratio", "usual_length", "distinct_2_ratio",
)  # fmt: skip
"""The main quantities of a group, in the order of ``summary`` in evaluation.json and of the model card."""
MAIN_OF_ALL = ("depth/ma_suffix", "depth/ma_unshared", "depth/nll_suffix", "membership/loss_auc", "holdout/perplexity")
SIBLINGS = "siblings.json"
_LEFT_BY_A_KILL = {LOCK_FILE, ".writable", "config.json.tmp"}

_WRITTEN = ("model", "checkpoints", "checkpoint", "best", "dumps", "tensorboard", "points", "work", "twins")


def check_folder(out: Path, *, is_new: bool) -> None:
    """Raise ValueError for a folder that cannot be written, or for one that is not empty when the run is new.

    No link in it is followed: it could lead a run to write elsewhere. The folder itself may be one.
    What a run leaves that was killed before it had written its settings does not count.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    if is_new and out.is_dir() and {path.name for path in out.iterdir()} - _LEFT_BY_A_KILL:
        raise ValueError(f"--out {out} is not empty: name another folder, or go on there with --resume")
    refuse_links(out, _WRITTEN)
    try:
        out.mkdir(parents=True, exist_ok=True)
        new_text(out / ".writable").close()
        (out / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"--out {visible(str(out))} cannot be written: {error.strerror}") from error


def check_untrained(out: Path) -> None:
    """Raise ValueError for a folder that already holds a training."""
    metrics = out / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        raise ValueError(f"--out {out} holds a training: go on with --resume, or name another folder")


@shown_errors()
def read_settings(out: Path) -> dict[str, Any]:
    """config.json of a run. Raises ValueError when it is missing or damaged."""
    path = out / "config.json"
    if not path.exists():
        raise ValueError(f"--out {out} holds no run: there is no config.json in it")
    settings = read_json(path)
    try:
        return {"options": dict(settings["options"]), "config": dict(settings["config"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def check_same(saved: Mapping[str, Any], options: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that differs from the run's own: a run must resume with its first settings."""
    free = ("out", "resume", "steps", "device", "live")
    for given, known in ((options, saved.get("options", {})), (config, saved.get("config", {}))):
        for name, value in given.items():
            before = tuple(known[name]) if isinstance(known.get(name), list) else known.get(name)
            if name in known and name not in free and value != before:
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{flag} {value!r} is not this run's {before!r}: leave it out, or start in another --out"
                )


def write_results(
    folder: Path, meta: Mapping[str, Any], before: Evaluation, after: Evaluation | None = None
) -> dict[str, Any]:
    """Write passages.jsonl and evaluation.json, and return the content of evaluation.json."""
    results: dict[str, Any] = {"meta": dict(meta), "summary": summarise(before, after), "before": before.to_dict()}
    if after is not None:
        results["after"] = after.to_dict()
    shown, original = (before, None) if after is None else (after, results["before"])
    results["verdict"] = judge(shown.to_dict(), original=original).to_dict()
    records = pair_records(before.records, after.records if after is not None else None)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    replace_text(folder / "passages.jsonl", text)
    write_json(folder / "evaluation.json", results)  # last: if it exists, passages.jsonl is whole
    return results


@shown_errors()
def read_before(folder: Path) -> Evaluation:
    """The evaluation before unlearning, with its records."""
    head = ("id", "group", "kind", "repeats", "prompt", "truth")
    before = read_results(folder)["before"]
    try:
        records = [
            {**{name: p[name] for name in head}, "secrets": p.get("secrets", []), **p["before"]}
            for p in read_passages(folder / "passages.jsonl")
        ]
        return Evaluation.from_dict(before, records)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds a damaged evaluation: {error!r} in passages.jsonl or evaluation.json"
        ) from error


def note_siblings(out: Path, texts: Sequence[str]) -> None:
    """Write the texts that are unlearned beside the passages into the run's folder, once: they are private, too."""
    path = out / SIBLINGS
    if (out / "config.json").is_file() and not path.exists():
        write_json(path, [without_surrogates(text) for text in texts])


@shown_errors()
def noted_siblings(out: Path) -> dict[str, str]:
    """How many texts :func:`note_siblings` left in a folder, as a fact for readers; {} where there are none."""
    found = read_json(out / SIBLINGS) if (out / SIBLINGS).is_file() else []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{out / SIBLINGS} is damaged: it is no list of texts")
    count = f"{len(found)} text{'' if len(found) == 1 else 's'}"
    return {ALSO: f"{count} of the same form that the model recited by itself"} if found else {}


def summarise(before: Evaluation, after: Evaluation | None) -> dict[str, Any]:
    """The main numbers of an unlearning run, before and after."""
    after_some = dict.fromkeys(n.partition("/")[2] for n in before.summary if "/exact_after_" in n)
    places = MAIN.index("exact") + 1
    quantities = (*MAIN[:places], *after_some, *MAIN[places:])
    names = [
        f"{group}/{quantity}" for group in ("forget", "forget_holdout", "keep", "never") for quantity in quantities
    ]
    wanted = [
        name for name in [*names, *MAIN_OF_ALL] if name in before.summary and (after is None or name in after.summary)
    ]
    if after is None:
        return {name: {"before": before.summary[name]} for name in wanted}
    summary: dict[str, Any] = {name: {"before": before.summary[name], "after": after.summary[name]} for name in wanted}
    if "holdout/perplexity" in summary:
        pair = summary["holdout/perplexity"]
        summary["holdout/perplexity_ratio"] = pair["after"] / pair["before"]
    return summary
