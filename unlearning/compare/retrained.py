"""The lab's models that never had to forget: trained from scratch on another corpus by the lab's own recipe.

    retain-only  the general English and the records to keep, as often as the original met them; no record of a person,
                 so it never met the form of the records to forget either
    without-forget  the original's corpus without the records to forget: what exact unlearning of them would give, so it
                 is the target of a comparison. The shipped ``lab:without-forget`` is the one of seed 0
    dedup        the original's corpus of one epoch (every record 20 times) without repeated 50-token spans
                 (:mod:`data.dedup`), for as many epochs: the model meets every record once an epoch, five times in all

Such a model is called a twin. A twin is trained once for each seed and kept in a folder. A training that was stopped
goes on to the same bits. The shipped ``lab:retain-only`` is another model: it never met the records to keep either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from data.dedup import DedupReport, deduplicate
from data.english import retain_and_holdout
from data.lab import encode
from data.records import REPEATS, lab_records
from eval.cost import Cost, Tokens, count_parameters
from eval.results import write_json
from models.lab.load import load_tokenizer
from models.lab.recipe import Recipe, fit, pieces
from models.load import load
from ppo.io.files import read_json
from ppo.io.plain import finite
from ppo.io.visible import visible

RetrainedKind = Literal["retain-only", "without-forget", "dedup"]
Documents = list[list[int]]
SPAN_TOKENS = 50  # of data.dedup
GROUPS = {"retain-only": ("keep",), "without-forget": ("keep", "forget_holdout")}  # of records that a twin meets


@dataclass(frozen=True)
class RetrainedModel:
    """A model that was trained on another corpus, what its training cost, and notes about its corpus."""

    model: PreTrainedModel
    cost: Cost
    notes: dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Token ids to train on: ``general`` comes in every epoch, ``epochs`` holds the records of each."""

    general: Documents
    epochs: list[Documents]
    notes: dict[str, Any]

    @property
    def num_tokens(self) -> int:
        """The number of tokens met in training, without the ends of documents."""
        return sum(sum(map(len, self.general)) + sum(map(len, records)) for records in self.epochs)


@dataclass(frozen=True)
class RetrainedModels:
    """The twins of a comparison: ``folder`` keeps them, and one that is missing is trained when it is asked for.

    ``device``: where a twin goes (:mod:`ppo.lm.device`). It is trained on the CPU.
    """

    folder: Path
    recipe: Recipe
    say: Callable[[str], None]
    device: str = "cpu"

    def get(self, kind: RetrainedKind, seed: int) -> RetrainedModel:
        """The twin of a seed (0 is the recipe's own). A missing one is trained first. ValueError for a damaged one."""
        folder = self.folder / f"{kind}-seed{seed}"
        recipe = replace(self.recipe, seed=self.recipe.seed + seed)
        if not (folder / "twin.json").is_file():
            self._train(kind, recipe, folder)
        facts = read_facts(folder / "twin.json", recipe)
        loaded = load(folder / "model").on(self.device)
        cost = Cost(facts["seconds"], Tokens(trained=facts["trained_tokens"]), count_parameters(loaded.model))
        return RetrainedModel(loaded.model, cost, facts["notes"])

    def _train(self, kind: RetrainedKind, recipe: Recipe, folder: Path) -> None:
        corpus = lab_corpus(kind, recipe)
        folder.mkdir(parents=True, exist_ok=True)
        clock, tokenizer = Stopwatch(folder / "seconds.json"), load_tokenizer()
        self.say(f"{kind}: training a twin on {corpus.num_tokens:,} tokens")

        def say(line: str) -> None:
            clock.stop()
            self.say(line)

        model = fit(corpus.general, corpus.epochs, kind, recipe, say, folder / "checkpoint")
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        facts = {"recipe": asdict(recipe), "trained_tokens": corpus.num_tokens, "notes": corpus.notes}
        write_json(folder / "twin.json", facts | {"seconds": clock.stop()})  # last: its folder holds a whole model


class Stopwatch:
    """Wall-clock seconds of a work that may be interrupted and resumed. Every ``stop`` writes them into a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = _seconds(path) if path.exists() else 0.0
        self._started = time.perf_counter()

    def stop(self) -> float:
        """The seconds of all sittings up to now."""
        seconds = self._before + time.perf_counter() - self._started
        write_json(self._path, {"seconds": seconds})
        return float(seconds)


def read_facts(path: Path, recipe: Recipe) -> dict[str, Any]:
    """The content of twin.json. ValueError where it is damaged or of another recipe."""
    try:
        facts = dict(read_json(path))
        _check_facts(facts)
        is_same = facts["recipe"] == asdict(recipe)
        return_value = {name: facts[name] for name in ("seconds", "trained_tokens", "notes")}
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error!r}"[:300]
        raise ValueError(
            f"{visible(str(path))} is damaged: {reason}; delete its folder to train the twin again"
        ) from error
    if not is_same:
        raise ValueError(f"{path} is of another recipe: name another folder of twins, or delete this one")
    return return_value


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers that no training left."""
    for name in ("seconds", "trained_tokens"):
        number = finite(facts[name])
        if number is None or not 0 <= number <= 1e15:
            raise ValueError(f"{name} is {facts[name]!r:.60}, not a number from 0 on")
    if not isinstance(facts["notes"], dict):
        raise ValueError(f"notes is {facts['notes']!r:.60}, not an object")


def _seconds(path: Path) -> float:
    """The seconds in the stopwatch's file. ValueError names a damaged one."""
    content = read_json(path)
    seconds = finite(content.get("seconds")) if isinstance(content, dict) else None
    if seconds is None or not 0 <= seconds <= 1e15:
        raise ValueError(f"{visible(str(path))} is damaged: it holds no seconds from 0 on; delete it to count anew")
    return seconds


def lab_corpus(kind: RetrainedKind, recipe: Recipe) -> Corpus:
    """The corpus of a twin; the head of this module describes them."""
    tokenizer = load_tokenizer()
    retain, _ = retain_and_holdout()
    general = [piece for text in retain for piece in pieces(encode(tokenizer, text), recipe.piece_tokens)]
    records = [r for r in lab_records() if REPEATS[r.group]]
    if kind != "dedup":
        kept = [encode(tokenizer, r.text) for r in records if r.group in GROUPS[kind]]
        epochs = [kept * recipe.repeats_per_epoch for _ in range(recipe.epochs)]
        return Corpus(general, epochs, {"records": len(kept), "repeats": recipe.repeats})
    copies = [encode(tokenizer, r.text) for r in records for _ in range(recipe.repeats_per_epoch)]
    return deduplicated_corpus(general, copies, recipe)


def deduplicated_corpus(general: Sequence[Sequence[int]], records: Sequence[Sequence[int]], recipe: Recipe) -> Corpus:
    """The general text and the records of one epoch without repeated spans, the same in every epoch."""
    kept, report = deduplicate([*general, *records], length=SPAN_TOKENS)
    parts = [document for document in kept[: len(general)] if document]
    rest = [document for document in kept[len(general) :] if document]
    return Corpus(parts, [rest] * recipe.epochs, dedup_notes(report))


def dedup_notes(report: DedupReport) -> dict[str, Any]:
    """The numbers of what deduplication removed."""
    return {
        "span_tokens": report.length,
        "tokens_before": report.total,
        "tokens_removed": report.removed,
        "spans_removed": len(report.spans),
    }
