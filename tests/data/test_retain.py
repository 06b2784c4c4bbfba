"""Loading text to keep, from text files and JSONL, and every error with its place and remedy."""

from __future__ import annotations

import json

import pytest

from data import retain
from data.retain import load_retain
from models.lab.load import load_tokenizer
from tests.data.test_passages import write_lines


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_retain_from_text_and_jsonl(tmp_path, tokenizer):
    text = "The value of the expression is returned. " * 30
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    rows = write_lines(tmp_path / "b.jsonl", {"text": text}, {"text": "short"})
    chunks = load_retain([tmp_path / "a.txt", rows], tokenizer, 32)
    assert {len(chunk) for chunk in chunks} == {32}
    assert chunks[: len(chunks) // 2] == chunks[len(chunks) // 2 :]
    decoded = "".join(tokenizer.decode(chunk) for chunk in chunks[: len(chunks) // 2])
    assert len(decoded) > 1000
    assert text.startswith(decoded)


def test_retain_errors(tmp_path, tokenizer):
    short = tmp_path / "short.txt"
    short.write_text("short", encoding="utf-8")
    with pytest.raises(ValueError, match=r"short.txt: no document is 32 tokens long"):
        load_retain([short], tokenizer, 32)
    with pytest.raises(ValueError, match=r"line 1 has the keys \['body'\]; it needs a string under 'text'"):
        load_retain([write_lines(tmp_path / "c.jsonl", {"body": "x"})], tokenizer, 32)
    with pytest.raises(ValueError, match="no retain files"):
        load_retain([], tokenizer, 32)
    with pytest.raises(ValueError, match=r"gone.txt is not a file"):
        load_retain([tmp_path / "gone.txt"], tokenizer, 32)
    with pytest.raises(ValueError, match=r"length_tokens=0 must be at least 1"):
        load_retain([short], tokenizer, 0)
    short.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"short.txt, line 1 is not UTF-8"):
        load_retain([short], tokenizer, 32)


def test_line_ends_of_windows_and_upper_case_endings_change_nothing(tmp_path, tokenizer):
    text = "one two three four\nfive six seven\n" * 40
    for name, ends in (("lf", "\n"), ("crlf", "\r\n"), ("cr", "\r")):
        (tmp_path / f"{name}.txt").write_bytes(text.replace("\n", ends).encode())
    (tmp_path / "A.JSONL").write_text(json.dumps({"text": text}) + "\n")
    found = [load_retain([tmp_path / name], tokenizer, 16) for name in ("lf.txt", "crlf.txt", "cr.txt", "A.JSONL")]
    assert all(chunks == found[0] for chunks in found)


def test_a_long_document_is_encoded_by_parts_that_end_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(retain, "PIECE_CHARACTERS", 50)
    asked = []

    def by_letters(text, add_special_tokens):
        asked.append(text)
        return {"input_ids": [*map(ord, text)]}

    text = "one line of text\n" * 20 + "w" * 120
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    load_retain([tmp_path / "a.txt"], by_letters, 8)
    assert "".join(asked) == text
    assert max(map(len, asked)) == 50
    assert all(part.endswith("\n") for part in asked[:6])
