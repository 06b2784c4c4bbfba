"""Loading passages: a folder of challenge ``.npy`` files, a CSV, a JSONL file, a benchmark, or the built-in lab.

A text row becomes token ids in two steps. First the whole text (pre-prefix + prefix + suffix) is encoded at once, as in
training. Then the ids are cut where the parts meet, by the tokenizer's character offsets. A token that straddles a cut
belongs to the later part, so a prompt never holds a character of the text that it is tested on. Ids come from the
model's own tokenizer and include no special tokens. A row with ids keeps them. This module knows nothing about models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.challenge import find_split, read_challenge
from data.lab import lab_passages
from data.secrets import check_named, named_secrets
from data.subjects.load import load_subject, named_subject
from data.types import Passage
from ppo.io.console import shown_errors
from ppo.io.rows import Place, csv_rows, jsonl_rows, kind_of_file
from ppo.io.visible import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Passage", "load_passages"]
PARTS = ("pre_prefix", "prefix", "suffix")
MOST_CHARACTERS = 1_000_000  # of a part of a passage, or tokens of one: more than any model's context
LONGEST_LABEL = 1000  # characters of an id, a group or a kind
GROUPS = ("", "forget", "forget_holdout", "keep", "never")
_GPT2_PROBES = {" the": 262, " and": 290, " of": 286}


@shown_errors()
def load_passages(
    spec: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    *,
    split: str | None = None,
    limit: int | None = None,
) -> list[Passage]:
    """Passages in the order of the file, at most ``limit``.

    ``spec`` is one of
        "lab"
        a folder of challenge files: ids of GPT-2's vocabulary; ``split`` defaults to "val"
        a ``.csv`` file with the columns ``pre_prefix,prefix,suffix``
        a ``.jsonl`` file whose rows hold the same three parts as text or as ``*_ids``; ids win when a row has both
        "pythia:", "hubble:", "muse:", "tofu:" or "rwku:" with a folder of that benchmark (:mod:`data.subjects.load`)

    ``pre_prefix`` is optional. The rows of both kinds of file may also give ``id``, ``group``, ``kind`` and ``secrets``
    (:mod:`data.secrets`); nothing else is read. ``vocab_size`` is the size of the model's vocabulary. ValueError names
    the file, the row, the value and the remedy.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    path = Path(spec)
    if str(spec) == "lab":
        passages = lab_passages(tokenizer)[:limit]
        places = [f"lab record {passage.id}" for passage in passages]
    elif subject := named_subject(spec):
        places, passages = load_subject(*subject, tokenizer, split=split, limit=limit)
    elif path.is_dir():
        places, passages = _from_challenge(path, tokenizer, split, limit)
    elif kind_of_file(path) == ".csv":
        rows = islice(csv_rows(path, PARTS), limit)
        places, passages = _collect((place, _from_text(row, place, tokenizer)) for place, row in rows)
    elif kind_of_file(path) in (".jsonl", ".ndjson"):
        places, passages = _collect(
            (place, _from_json(row, place, tokenizer)) for place, row in islice(jsonl_rows(path), limit)
        )
    else:
        is_sheet = kind_of_file(path) in (".xlsx", ".xls", ".ods")
        remedy = "save the sheet as CSV, in UTF-8" if is_sheet else "check the path"
        raise ValueError(f"--data {str(spec)!r} is neither 'lab', a folder, a .csv nor a .jsonl file; {remedy}")
    checked = _checked(spec, places, passages, vocab_size)
    _warn_of_ends(spec, checked, tokenizer)
    return checked


def _warn_of_ends(spec: str | Path, passages: Sequence[Passage], tokenizer: Any) -> None:
    """Warn of passages that hold the tokenizer's EOS, which a literal mark in a text becomes as well."""
    end = getattr(tokenizer, "eos_token_id", None)
    found = [passage.id for passage in passages if end in passage.ids]
    if found:
        warnings.warn(
            f"{len(found)} of {len(passages)} passages of {visible(str(spec))} (such as {visible(found[0])}) hold the "
            f"end of a text, {tokenizer.eos_token!r} ({end}): in training a response ends there, the evaluation asks "
            "for every token; cut them there if the mark is none of their words",
            RuntimeWarning,
            stacklevel=4,
        )


def cut_text(text_parts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Token ids of each part of a text that is encoded as a whole.

    A token belongs to the part that holds its last character. Example: ``["ab", "cd"]`` with the tokens "a", "bc", "d"
    gives ["a"] and ["bc", "d"]. ValueError for a tokenizer without character offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; use a fast tokenizer or rows with *_ids"
        )
    text = "".join(text_parts)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    cuts, boundary = [0], 0
    for part in text_parts[:-1]:
        boundary += len(part)
        cuts.append(next((i for i, end in enumerate(ends) if end > boundary), len(ids)))
    cuts.append(len(ids))
    return [tuple(ids[start:stop]) for start, stop in pairwise(cuts)]


def _collect(rows: Any) -> tuple[list[Place], list[Passage]]:
    """The places and the passages of the rows. A passage without an id gets its row number, from 0, as its id."""
    places, passages = [], []
    for number, (place, passage) in enumerate(rows):
        places.append(place)
        passages.append(passage if passage.id else replace(passage, id=f"row-{number:05d}"))
    return places, passages


def _from_challenge(
    folder: Path, tokenizer: PreTrainedTokenizerBase, split: str | None, limit: int | None
) -> tuple[list[Place], list[Passage]]:
    for text, expected in _GPT2_PROBES.items():
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids != [expected]:
            raise ValueError(
                f"{visible(str(folder))} holds GPT-2 token ids, but the model's tokenizer encodes {text!r} as {ids}, "
                f"not [{expected}]; give the passages as text (val.csv) to a model with another vocabulary"
            )
    split = find_split(folder, split)
    arrays = read_challenge(folder, split, limit)
    places, passages = [], []
    rows = zip(*(arrays[part].tolist() for part in ("preprefix", "prefix", "suffix")), strict=True)
    for number, parts in enumerate(rows):
        places.append(f"{visible(str(folder))}, split {split}, row {number}")
        passages.append(Passage(f"{split}-{number:05d}", *map(tuple, parts)))
    return places, passages


def _from_text(row: dict[str, Any], place: Place, tokenizer: PreTrainedTokenizerBase) -> Passage:
    parts = [row.get(part, "") for part in PARTS]
    for part, value in zip(PARTS, parts, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"{place}: {part} is {value!r:.80}; it must be a string")
        if len(value) > MOST_CHARACTERS:
            raise ValueError(f"{place}: {part} has {len(value)} characters, at most {MOST_CHARACTERS}; cut it")
    return _labelled(Passage("", *cut_text(parts, tokenizer)), row, place, tokenizer)


def _from_json(row: dict[str, Any], place: Place, tokenizer: PreTrainedTokenizerBase) -> Passage:
    if "prefix_ids" in row or "suffix_ids" in row:
        return _labelled(Passage("", *(_id_field(row, part, place) for part in PARTS)), row, place, tokenizer)
    if "prefix" in row and "suffix" in row:
        return _from_text(row, place, tokenizer)
    raise ValueError(f"{place} has the keys {sorted(row)}; it needs prefix and suffix, or prefix_ids and suffix_ids")


def _labelled(passage: Passage, row: dict[str, Any], place: Place, tokenizer: Any) -> Passage:
    """The passage with the row's id, group, kind and secrets, each empty when the row lacks it."""
    labels = {key: _label(row, key, place) for key in ("id", "group", "kind")}
    if labels["group"] not in GROUPS:
        raise ValueError(
            f"{place}: group is {labels['group']!r:.80}; it must be one of {', '.join(filter(None, GROUPS))}"
        )
    labelled = replace(passage, **labels, secrets=named_secrets(row.get("secrets", ""), place))
    check_named(labelled, place, tokenizer.decode)
    return labelled


def _id_field(row: dict[str, Any], part: str, place: Place) -> tuple[int, ...]:
    value = row.get(f"{part}_ids", [])
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise ValueError(f"{place}: {part}_ids is {value!r:.80}; it must be a list of whole numbers")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"{place}: {part}_ids has {len(value)} ids, at most {MOST_CHARACTERS}; cut it")
    return tuple(value)


def _label(row: dict[str, Any], key: str, place: Place) -> str:
    value = row.get(key, "")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{place}: {key} is {value!r:.80}; it must be a string")
    if len(text := str(value)) > LONGEST_LABEL:
        raise ValueError(f"{place}: {key} has {len(text)} characters, at most {LONGEST_LABEL}")
    return text


def _checked(spec: str | Path, places: Sequence[Place], passages: list[Passage], vocab_size: int) -> list[Passage]:
    """The same passages. ValueError unless all can be used: no empty part, ids in the vocabulary, unique names."""
    if not passages:
        raise ValueError(f"{visible(str(spec))} holds no passages; give at least one row")
    seen: dict[str, Place] = {}
    for place, passage in zip(places, passages, strict=True):
        for part in ("prefix", "suffix"):
            if not getattr(passage, part):
                raise ValueError(f"{place}: the {part} is empty; every passage needs at least one token of it")
        low, high = min(passage.ids), max(passage.ids)
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise ValueError(f"{place}: token id {bad} lies outside the model's vocabulary of {vocab_size} tokens")
        if passage.id in seen:
            raise ValueError(f"{place}: the id {passage.id!r:.80} is already at {seen[passage.id]}; ids must be unique")
        seen[passage.id] = place
    return passages
