"""Damaged files of every format: a ValueError, or text with places that exist; never another error."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from data.corpus.files import corpus_files
from data.corpus.formats import read_file
from data.corpus.reading import readings
from models.lab.load import load_tokenizer

TEXT = 'The “café” 🎈 was <b>here</b>, 日本語 &amp; there.\r\nNext line, "quoted".\u00ad\n\n' * 12
ROWS = "\n".join(json.dumps({"t": TEXT[: 50 * i], "l": [{"x": "y"}, ["z"]]}) for i in range(9))
GOOD = {
    "a.txt": TEXT.encode(),
    "b.txt": TEXT.encode("utf-16"),
    "c.html": f"<html><meta charset=utf-8><script>x</script><pre>{TEXT}</pre><p>{TEXT}".encode(),
    "d.jsonl": ROWS.encode(),
    "e.json": json.dumps([{"t": TEXT, "k": {"a": ["b"]}}], indent=1).encode(),
    "f.csv": ("id,text\n" + "\n".join(f'{i},"a ""b""\n{i}"' for i in range(20))).encode(),
    "g.txt.gz": gzip.compress(TEXT.encode()),
    "h.jsonl.gz": gzip.compress(ROWS.encode()),
}
SIGNS = [
    b"\x00",
    b'"',
    b"<!--",
    b"<pre>",
    b"\xff\xfe",
    b"[[[[",
    b"\\ud800",
    b"\r",
    b"&#xD800;",
    b",,,",
    b"\xef\xbb\xbf",
]


def damaged(content: bytes, noise: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(noise.randint(0, 6)):
        place, kind = noise.randrange(len(changed) + 1), noise.random()
        if kind < 0.4:
            changed[place : place + 1] = bytes([noise.randrange(256)])
        elif kind < 0.6:
            changed[place:place] = noise.choice(SIGNS)
        elif kind < 0.8:
            del changed[place : place + noise.randint(1, 200)]
        elif kind < 0.9:
            changed[place:place] = noise.randbytes(noise.randint(1, 9))
        else:
            del changed[place:]
    return bytes(changed)


@pytest.mark.parametrize("name", GOOD)
def test_damaged_files(tmp_path, name):
    noise, tokenizer = random.Random(name), load_tokenizer()
    num_read = num_refused = 0
    for _ in range(12):
        (tmp_path / name).write_bytes(damaged(GOOD[name], noise))
        try:
            for document in read_file(corpus_files([tmp_path]).files[0]):
                num_read += 1
                assert document.lines[0][0] == 0
                document.name.encode()
                for reading in readings(document, tokenizer):
                    for first in range(len(reading.ids)):
                        start, end = reading.span(first, min(first + 5, len(reading.ids)))
                        assert 0 <= start <= end <= len(document.text)
                        assert document.line_of(start) >= 1
        except ValueError:
            num_refused += 1
    assert num_read
    assert num_read + num_refused >= 12
