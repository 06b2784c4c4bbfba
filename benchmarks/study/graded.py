"""A lab whose private records were repeated less or more: the model behind the page "forgetting against repetition".

The built-in lab met every record 100 times, so it cannot show what repetition does. This model is trained from scratch
on the same corpus by the same recipe, but the records of people stand in it 10, 25, 50 or 100 times. The levels take
turns: four records (one of each shape) have one level, the next four the next. The records to keep stay at 100. The
model is trained once and kept in a folder; a training that was stopped goes on. This module knows nothing about
unlearning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data.english import retain_and_holdout
from data.lab import encode
from data.lab_private import PRIVATE_SHAPES
from data.records import REPEATS, Record, lab_records
from data.types import Passage
from models.lab.load import load_tokenizer
from models.lab.recipe import Recipe, fit, pieces
from ppo.io.files import write_json
from unlearning.compare.retrained import Corpus, Stopwatch, read_facts

SHARES = (0.1, 0.25, 0.5, 1.0)  # of the lab's own repeats an epoch


def repeats_per_epoch(record_id: str, group: str, recipe: Recipe) -> int:
    """How often an epoch holds a record; 0 for one that is never met. Every level has all shapes equally often."""
    if not REPEATS[group]:
        return 0
    if group == "keep":
        return recipe.repeats_per_epoch
    block = int(record_id.rpartition("-")[2]) // len(PRIVATE_SHAPES)
    return max(1, round(recipe.repeats_per_epoch * SHARES[block % len(SHARES)]))


def with_repeats(passages: Sequence[Passage], recipe: Recipe) -> list[Passage]:
    """The lab's passages, each with the number of times that this lab's model met it."""
    return [replace(p, repeats=recipe.epochs * repeats_per_epoch(p.id, p.group, recipe)) for p in passages]


def graded_corpus(general: Sequence[str], records: Sequence[Record], recipe: Recipe) -> Corpus:
    """General text, and every record as often as its level says. All epochs are the same."""
    tokenizer = load_tokenizer()
    cut = [piece for text in general for piece in pieces(encode(tokenizer, text), recipe.piece_tokens)]
    epoch = [ids for r in records for ids in [encode(tokenizer, r.text)] * repeats_per_epoch(r.id, r.group, recipe)]
    return Corpus(cut, [epoch] * recipe.epochs, {"records": sum(REPEATS[r.group] > 0 for r in records)})


def graded_model(
    folder: Path, recipe: Recipe, say: Callable[[str], None], *, most_documents: int | None = None
) -> Path:
    """The folder of the model. The model is trained first where it is not there.

    ``most_documents``: documents of general text at most, to try whether it runs. ValueError for a folder of another
    recipe.
    """
    facts = folder / "twin.json"
    if facts.is_file():
        read_facts(facts, recipe)
        return folder / "model"
    corpus = graded_corpus(retain_and_holdout()[0][:most_documents], lab_records(), recipe)
    folder.mkdir(parents=True, exist_ok=True)
    clock = Stopwatch(folder / "seconds.json")
    say(f"graded lab: training on {corpus.num_tokens:,} tokens")

    def tell(line: str) -> None:
        clock.stop()
        say(line)

    model = fit(corpus.general, corpus.epochs, "graded lab", recipe, tell, folder / "checkpoint")
    model.save_pretrained(folder / "model")
    load_tokenizer().save_pretrained(folder / "model")
    known = {"recipe": asdict(recipe), "trained_tokens": corpus.num_tokens, "notes": corpus.notes}
    write_json(facts, known | {"seconds": clock.stop()})  # last: where it stands, the model is whole
    return folder / "model"
