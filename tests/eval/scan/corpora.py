"""Texts and readings that the tests of the scan share."""

from __future__ import annotations

import csv
import gzip
import json
import re
import textwrap
from collections.abc import Sequence
from functools import cache, partial
from html import escape
from pathlib import Path

from data.corpus.document import Document, lines_of
from data.corpus.files import corpus_files
from data.corpus.formats import read_file
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


def write_folder(folder: Path, chosen: Sequence[Record]) -> None:
    """The records as a folder of five formats; in three of them their lines are wrapped anew."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [record.text for record in chosen]
    wrapped = ["\n".join(textwrap.wrap(text, 60)) for text in texts]
    quoted = [text.replace("'", "\u2019").replace(" ", "  ", 3) for text in wrapped]
    (folder / "plain.txt").write_bytes("\r\n\r\n".join(texts).encode())
    (folder / "below").mkdir(exist_ok=True)
    (folder / "below" / "wrapped.md").write_text("# Records\n\n" + "\n\n".join(quoted) + "\n", encoding="utf-16")
    page = "".join(f"<p>{escape(text)}</p>\n" for text in wrapped)
    (folder / "page.html").write_text(f"<html><body>{page}</body></html>", encoding="utf-8")
    with gzip.open(folder / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"number": i, "text": text}) + "\n" for i, text in enumerate(texts))
    with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in wrapped)])
    (folder / "picture.png").write_bytes(b"\x89PNG\x00\x01\x02" * 50)


def places_of(folder: Path, chosen: Sequence[Record]) -> dict[tuple[str, str], tuple[int, int]]:
    """(document, record) -> the record's characters, found in the document's text apart from white space and quotes."""
    found = {}
    for file in corpus_files([folder]).files:
        for document in read_file(file, text_fields=("text",)):
            for record in chosen:
                pattern = r"\s+".join(re.escape(word).replace("'", "['\u2019]") for word in record.text.split())
                if match := re.search(pattern, document.text):
                    found[document.name, record.id] = match.span()
    return found
