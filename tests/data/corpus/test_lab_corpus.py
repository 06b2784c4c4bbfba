# ruff: noqa: RUF001
"""The lab's records as a folder of files, wrapped anew, in every format: each is found, with exact ends and lines."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import random
import textwrap

import pytest

from data.corpus.files import corpus_files
from data.corpus.folding import folded
from data.corpus.formats import read_file
from data.corpus.reading import readings
from data.records import lab_records
from models.lab.load import load_tokenizer

RECORDS = [record.text for record in lab_records()]


def rewrapped(text: str, noise: random.Random) -> str:
    """Other line breaks, spaces and quotes."""
    lines = textwrap.wrap(text, noise.randint(30, 90), break_on_hyphens=False)
    typographic = "\n".join(lines).replace("'", "’")
    return typographic.replace(" ", "  ", noise.randint(0, 3))


def as_csv(texts):
    out = io.StringIO()
    csv.writer(out).writerows([["id", "text"], *([str(i), text] for i, text in enumerate(texts))])
    return out.getvalue()


FORMATS = {
    "all.txt": "\n\n".join,
    "all.html": lambda texts: "<html><body>" + "".join(f"<p>{html.escape(text)}</p>\n" for text in texts),
    "all.jsonl": lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts),
    "all.csv": as_csv,
    "all.json": lambda texts: json.dumps(texts, indent=1),
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def wanted(tokenizer):
    """Of every record its ids, as text, and its characters, both without the first word: it may follow a space."""
    found = []
    for text in RECORDS:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins = [begin for begin, _ in encoded["offset_mapping"]]
        first = begins.index(text.index(" "))
        ids = " ".join(map(str, encoded["input_ids"][first:]))
        found.append((f" {ids} ", text[begins[first] :]))
    return found


@pytest.mark.parametrize(
    "name", ["all.txt", "all.txt.gz", "all.html", "all.jsonl", "all.csv", "all.csv.gz", "all.json"]
)
def test_every_record_is_found_with_exact_ends(tmp_path, tokenizer, wanted, name):
    noise = random.Random(3)
    texts = [rewrapped(text, noise) for text in RECORDS]
    content = FORMATS[name.removesuffix(".gz")](texts).replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    lines = content.decode().split("\r\n")
    left = set(range(len(RECORDS)))
    for document in read_file(corpus_files([tmp_path]).files[0]):
        *_, reading = readings(document, tokenizer)
        ids = f" {' '.join(map(str, reading.ids.tolist()))} "
        for number in sorted(left):
            own, characters = wanted[number]
            if (at := ids.find(own)) < 0:
                continue
            left.remove(number)
            first = ids.count(" ", 0, at)
            start, stop = reading.span(first, first + len(own.split()))
            assert folded(f"x{document.text[start:stop]}x")[0] == f"x{characters}x"
            if "json" not in name:  # there a record's line is one line of the file
                assert texts[number].split()[-1] in html.unescape(lines[document.line_of(stop - 1) - 1])
    assert not left
