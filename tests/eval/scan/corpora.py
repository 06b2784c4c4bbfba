"""Texts and readings that the tests of the scan share."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from data.corpus.document import Document, lines_of
from data.corpus.reading import readings
from data.records import Record, lab_records
from data.splits import ngram_groups
from eval.scan.run import Subject
from models.load import LoadedModel, load
from unlearning.scan import subject_of

GROUP = partial(ngram_groups, ngram=20)


@cache
def lab(twin: str = "lab") -> LoadedModel:
    return load(twin)


def subject(twin: str = "lab") -> Subject:
    return subject_of(lab(twin))


def records(group: str, count: int) -> list[Record]:
    return [r for r in lab_records() if r.group == group][:count]


def document(name: str, text: str) -> Document:
    return Document(name, name, text, lines_of(text))


def of(*documents: Document):
    """A function that gives the readings of the documents by the lab's tokenizer, each time it is called."""
    return lambda: (r for d in documents for r in readings(d, lab().tokenizer))


class Plain:
    """A reading of token ids, a character each."""

    def __init__(self, ids, *, name="a"):
        self.ids = np.array(ids, dtype=np.int32)
        self.document = document(name, "".join(chr(97 + i % 26) for i in ids))
        self.is_folded = False

    def span(self, first, last):
        return first, last
