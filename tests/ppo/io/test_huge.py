"""Huge lines, fields and files end in one line, in bounded memory."""

from __future__ import annotations

import tracemalloc

import pytest

from data.passages import load_passages
from data.retain import load_retain
from models.lab.load import load_tokenizer
from ppo.io import rows
from ppo.io.files import read_json

MIB = 2**20


@pytest.fixture
def measured():
    """Fails where more than 300 MiB of Python's memory were taken at once."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * MIB


def write(path, part, times):
    with path.open("wb") as file:
        for _ in range(times):
            file.write(part * (MIB // len(part)))
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
@pytest.mark.parametrize(
    ("start", "part", "told"),
    [
        (b"pre_prefix,prefix,suffix\n", b"x", "is longer than 16777216 bytes|JSON"),
        (b'pre_prefix,prefix,suffix\n"', b"x" * 9999 + b"\n", "malformed|JSON"),
        (b'{"prefix": "', b"x", "is longer than 16777216 bytes"),
        (b"", b"[", "is longer than 16777216 bytes"),
        (b"", b"\0", "is longer than 16777216 bytes"),
    ],
)
def test_a_line_or_a_field_without_end(tmp_path, measured, name, start, part, told):
    path = tmp_path / name
    path.write_bytes(start + part * (40 * MIB // len(part)))
    with pytest.raises(ValueError, match=told) as error:
        load_passages(path, load_tokenizer(), 2048)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


def test_a_file_of_nothing_but_newlines(tmp_path, monkeypatch):
    """200 MB of them are said after five million; here fewer, for the time that a test may take."""
    assert rows.MAX_LINES == 5_000_000
    monkeypatch.setattr(rows, "MAX_LINES", 50_000)
    readers = {
        "rows.jsonl": lambda path: load_passages(path, load_tokenizer(), 2048),
        "keep.txt": lambda path: load_retain([path], load_tokenizer(), 16),
    }
    for name, read in readers.items():
        path = write(tmp_path / name, b"\n", 2)
        with pytest.raises(ValueError, match="has more than 50000 lines"):
            read(path)


def test_a_huge_or_deep_json(tmp_path, measured):
    path = tmp_path / "config.json"
    for content, told in ((b"[" * 10 * MIB, "is damaged"), (b'"' + b"x" * 40 * MIB + b'"', "is longer than")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            read_json(path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"prefix": "%s", "suffix": "b"}' % ("a " * 600_000), "prefix has 1200000 characters, at most 1000000"),
        ('{"prefix_ids": [%s 1], "suffix_ids": [2]}' % ("1," * 1_100_000), "prefix_ids has 1100001 ids"),
        ('{"prefix": "a", "suffix": "b", "id": "%s"}' % ("x" * 2000), "id has 2000 characters, at most 1000"),
    ],
)
def test_a_huge_passage(tmp_path, row, told):
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(ValueError, match=told):
        load_passages(path, load_tokenizer(), 2048)
