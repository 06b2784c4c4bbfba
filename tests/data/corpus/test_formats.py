"""Every format as documents: the text, what a document is called, and the line of the file for each character."""

from __future__ import annotations

import gzip
import json
import re
import time

import pytest

import data.corpus.formats
from data.corpus.document import Document, lines_of
from data.corpus.files import corpus_files
from data.corpus.formats import read_file


def documents(path, content: str | bytes, fields=()) -> list[Document]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (file,) = corpus_files([path.parent]).files
    found = list(read_file(file, text_fields=fields))
    for document in found:
        assert document.path == path.name
        assert document.lines[0][0] == 0
        assert list(document.lines) == sorted(document.lines)
        assert "\r" not in document.text
    return found


def line_of(document: Document, words: str) -> int:
    """The line of the file that holds the words, by the document's account; they stand in it once."""
    (at,) = [found.start() for found in re.finditer(re.escape(words), document.text)]
    assert {document.line_of(at + i) for i in range(len(words))} == {document.line_of(at)}
    return document.line_of(at)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.MD", "a.rst", "a.py", "README"])
def test_text_of_any_line_end_and_encoding(tmp_path, name, encoding, end):
    (document,) = documents(tmp_path / name, end.join(["first line", "", "zweite ä Zeile 🎈", "last"]).encode(encoding))
    assert document == Document(
        name, name, "first line\n\nzweite ä Zeile 🎈\nlast", ((0, 1), (11, 2), (12, 3), (29, 4))
    )
    assert line_of(document, "🎈") == 3


def test_the_last_line_feed_begins_no_line():
    assert lines_of("a\nb\n") == ((0, 1), (2, 2))
    assert lines_of("a\n\n", 7) == ((0, 7), (2, 8))
    assert lines_of("") == ((0, 1),)
    assert Document("a", "a", "a\nb\n", ((0, 1), (2, 2))).line_of(3) == 2


def test_a_long_text_comes_in_pieces_that_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(data.corpus.formats, "PIECE_CHARACTERS", 100)
    text = "".join(f"line {i} {'é' * (i % 30)}\n" for i in range(1, 80)) + "x" * 250 + "\nend"
    pieces = documents(tmp_path / "a.txt", text)
    assert len(pieces) > 10
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.name for piece in pieces] == ["a.txt", *(f"a.txt#{i}" for i in range(2, len(pieces) + 1))]
    assert [piece.is_start for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert all(line_of(p, words) == int(words.split()[1]) for p in pieces for words in re.findall(r"line \d+ ", p.text))
    assert line_of(pieces[-1], "end") == 81


def test_a_text_of_very_many_lines_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(data.corpus.formats, "PIECE_LINES", 4)
    pieces = documents(tmp_path / "a.txt", "a\n" * 10)
    assert [(piece.text, piece.lines[0]) for piece in pieces] == [
        ("a\n" * 4, (0, 1)),
        ("a\n" * 4, (0, 5)),
        ("a\n" * 2, (0, 9)),
    ]


PAGE = """<!DOCTYPE html>
<html><head><title>The
  title</title><style>p { color: red }</style>
<script>if (a < b) { document.write("<p>not text</p>") }</script></head>
<body><p>One <b>bo</b>ld&nbsp;word &amp; a <a href="x">link
that goes on</a>,
and&#x20;on.</p><p>Two<br>three</p>
<!-- a comment -->
<template><p>never shown</p></template><ul><li>four<li>five</ul>
<pre>as  it
 stands</pre>
<table><tr><td>left</td><td>right</td></tr></table>caf&eacute; &lt;end&gt;
</body></html>
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_html_gives_what_is_shown(tmp_path, end):
    (document,) = documents(tmp_path / "a.html", PAGE.replace("\n", end))
    assert document.text == (
        "The title\nOne bold\xa0word & a link that goes on, and on.\nTwo\nthree\nfour\nfive\nas  it\n stands\n"
        "left\nright\ncafé <end>"
    )
    lines = {"The": 2, "title": 3, "bold": 5, "link": 5, "that goes on": 6, "and on.": 7, "three": 7, "five": 9}
    lines |= {"as  it": 10, "stands": 11, "right": 12, "<end>": 12}
    assert {words: line_of(document, words) for words in lines} == lines


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("a < b & c <p>d</pre></p><b>e <unknown>f", "a < b & c\nd\ne f"),
        ("5<6 and <3", "5<6 and <3"),
        ("a<!-- <p>no</p> -- > -->b<!DOCTYPE x><?php echo ?>c", "abc"),
        ("a<!-- no end", "a<!-- no end"),
        ("a <b title='x>y' on=\"p>q\" z=it's>b</b\n>c", "a bc"),
        ('a <b title="no end>b</b>', "a b"),
        ("text <a no end", "text <a no end"),
        ("a<SCRIPT>x</scripts></SCRIPT >b<style>no end", "ab"),
        ("a<![CDATA[ <x> & &amp; ]]>b", "a <x> & &amp; b"),
        ("<textarea>a</textarea>&#xD800;&#0;&bogus;&copy", "a\n\ufffd\ufffd&bogus;©"),
    ],
)
def test_html_that_is_broken(tmp_path, page, text):
    (document,) = documents(tmp_path / "a.htm", page)
    assert document.text == text


def test_html_without_text_has_no_document(tmp_path):
    assert documents(tmp_path / "a.htm", "<p><script>x") == []


def test_hostile_html_takes_no_time(tmp_path):
    signs = (
        "<",
        "<!--",
        "<!",
        "<![CDATA[",
        "</",
        "<a ",
        '<a b="',
        '<a b=">" ',
        "&",
        "&#1",
        "<script>",
        "<pre>",
        "<p =",
    )
    for sign in signs:
        begin = time.process_time()
        documents(tmp_path / "a.html", "text " + sign * (300_000 // len(sign)))
        assert time.process_time() - begin < 5, sign


def test_json_lines_give_a_document_a_string(tmp_path):
    rows = [
        {"text": "first\ntext", "meta": {"id": "i-1", "n": 3}},
        {"text": "second é", "turns": [{"say": "hello"}, {"say": "bye"}], "none": None, "empty": ""},
        "a string alone",
        ["in", "a list"],
        5,
    ]
    lines = [json.dumps(rows[0]), "", *(json.dumps(row, ensure_ascii=False) for row in rows[1:])]
    found = documents(tmp_path / "a.jsonl", "\r\n".join(lines))
    assert [(d.name, d.text, d.lines) for d in found] == [
        ("a.jsonl#1.text", "first\ntext", ((0, 1),)),
        ("a.jsonl#1.meta.id", "i-1", ((0, 1),)),
        ("a.jsonl#2.text", "second é", ((0, 3),)),
        ("a.jsonl#2.turns.0.say", "hello", ((0, 3),)),
        ("a.jsonl#2.turns.1.say", "bye", ((0, 3),)),
        ("a.jsonl#3", "a string alone", ((0, 4),)),
        ("a.jsonl#4.0", "in", ((0, 5),)),
        ("a.jsonl#4.1", "a list", ((0, 5),)),
    ]
    assert found[0].line_of(8) == 1  # its line feed is none of the file's


def test_fields_that_are_asked_for(tmp_path):
    content = '{"text": "a", "b": {"text": "c"}, "turns": [{"say": "d"}]}\n{"text": "e"}\n'
    path = tmp_path / "a.ndjson"
    assert [(d.name, d.text) for d in documents(path, content, ["text"])] == [("a.ndjson#1", "a"), ("a.ndjson#2", "e")]
    assert [(d.name, d.text) for d in documents(path, content, ["turns.say", "b.text"])] == [
        ("a.ndjson#1.b.text", "c"),
        ("a.ndjson#1.turns.0.say", "d"),
    ]
    with pytest.raises(ValueError, match=r"a\.ndjson: no record has a string under words; check the name"):
        documents(path, content, ["words"])
    (tmp_path / "a.ndjson").unlink()
    assert documents(tmp_path / "a.txt", "text has no fields", ["words"])


def test_half_a_character_in_json_is_replaced(tmp_path):
    (document,) = documents(tmp_path / "a.jsonl", '{"text": "a\\ud800b\\r\\nc\\rd"}')
    assert document.text == "a\ufffdb\nc\nd"


def test_broken_json_lines_name_the_line(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl: line 3 is malformed JSON"):
        documents(tmp_path / "a.jsonl", '{"a": "x"}\n\n{"a": \n')
    with pytest.raises(ValueError, match="line 1 is malformed JSON"):
        documents(tmp_path / "a.jsonl", "[" * 100_000)


def test_json_whole(tmp_path):
    value = [{"q": 'wh"y\\', "a": {"b": ["x", "q"]}}, {"q": "second"}]
    found = documents(tmp_path / "a.json", json.dumps(value, indent=1))
    assert [(d.name, d.text, d.lines) for d in found] == [
        ("a.json#1.q", 'wh"y\\', ((0, 3),)),
        ("a.json#1.a.b.0", "x", ((0, 6),)),
        ("a.json#1.a.b.1", "q", ((0, 7),)),
        ("a.json#2.q", "second", ((0, 12),)),
    ]
    assert [d.name for d in documents(tmp_path / "a.json", '{"forget": ["a", "b"]}')] == [
        "a.json.forget.0",
        "a.json.forget.1",
    ]
    assert [d.name for d in documents(tmp_path / "a.json", '["a", "b"]')] == ["a.json#1", "a.json#2"]


def test_json_that_is_lines_or_none(tmp_path):
    found = documents(tmp_path / "a.json", '{"t": "a"}\n{"t": "b"}\n')
    assert [(d.name, d.lines) for d in found] == [("a.json#1.t", ((0, 1),)), ("a.json#2.t", ((0, 2),))]
    (document,) = documents(tmp_path / "a.json", '// a comment\n{"t": "a"}\n')
    assert document == Document("a.json", "a.json", '// a comment\n{"t": "a"}\n', ((0, 1), (13, 2)))


TABLE = 'id,text,note\n1,"first ""quoted"", with\ntwo lines","a\nb\nc"\n\n2,second,\n3,"x",y,beyond\n'


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_lines_are_exact_within_cells(tmp_path, end):
    found = documents(tmp_path / "a.csv", TABLE.replace("\n", end))
    assert [(d.name, d.text, d.lines) for d in found] == [
        ("a.csv#1.id", "1", ((0, 2),)),
        ("a.csv#1.text", 'first "quoted", with\ntwo lines', ((0, 2), (21, 3))),
        ("a.csv#1.note", "a\nb\nc", ((0, 3), (2, 4), (4, 5))),
        ("a.csv#2.id", "2", ((0, 7),)),
        ("a.csv#2.text", "second", ((0, 7),)),
        ("a.csv#3.id", "3", ((0, 8),)),
        ("a.csv#3.text", "x", ((0, 8),)),
        ("a.csv#3.note", "y", ((0, 8),)),
        ("a.csv#3.4", "beyond", ((0, 8),)),
    ]
    assert [d.name for d in documents(tmp_path / "a.csv", TABLE, ["text"])] == ["a.csv#1", "a.csv#2", "a.csv#3"]


@pytest.mark.parametrize(("name", "sign"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t")])
def test_other_separators(tmp_path, name, sign):
    found = documents(tmp_path / name, f"id{sign}text\n1{sign}one, two\n")
    assert [(d.name, d.text) for d in found] == [(f"{name}#1.id", "1"), (f"{name}#1.text", "one, two")]


def test_csv_without_a_header_loses_no_row(tmp_path):
    text = (
        "a passage that is far too long to be the name of a column, because names of columns are short, and it is not"
    )
    found = documents(tmp_path / "a.csv", f'"{text}",x\nb,y\n')
    assert [(d.name, d.text) for d in found] == [
        ("a.csv#1.1", text),
        ("a.csv#1.2", "x"),
        ("a.csv#2.1", "b"),
        ("a.csv#2.2", "y"),
    ]


def test_broken_csv_names_the_line_and_gives_what_came_before(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,good\n2,"not closed\n3,x\n')
    (file,) = corpus_files([tmp_path]).files
    found = read_file(file)
    assert [next(found).text, next(found).text] == ["1", "good"]
    with pytest.raises(ValueError, match=r"a\.csv: line 4 is malformed CSV"):
        next(found)


def test_with_skip_a_broken_line_is_left_out_and_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": "one"}\n{"t": \n\n{"t": "three"}\n[\n')
    reasons: list[str] = []
    (file,) = corpus_files([tmp_path]).files
    assert [(d.name, d.text) for d in read_file(file, skip=reasons.append)] == [
        ("a.jsonl#1.t", "one"), ("a.jsonl#3.t", "three")
    ]  # fmt: skip
    assert [reason.partition(" (")[0] for reason in reasons] == [
        "line 2 is malformed JSON", "line 5 is malformed JSON"
    ]  # fmt: skip


def test_with_skip_the_rest_of_a_broken_table_is_left_out_and_told(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,good\n2,"not closed\n3,x\n')
    reasons: list[str] = []
    (file,) = corpus_files([tmp_path]).files
    assert [d.text for d in read_file(file, skip=reasons.append)] == ["1", "good"]
    assert [r.startswith("line 4 is malformed CSV") and r.endswith("is left out") for r in reasons] == [True]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.csv.GZ", "a.html.gz"])
def test_packed_files_are_read_as_what_they_hold(tmp_path, name):
    content = {"a.jsonl.gz": '{"t": "words é"}', "a.csv.GZ": "t,u\nwords é,5\n"}.get(name, "words é")
    found = documents(tmp_path / name, gzip.compress(content.encode("utf-16" if "html" in name else "utf-8")))
    assert found[0].text == "words é"


def test_several_members_of_gzip_are_one_text(tmp_path):
    (document,) = documents(tmp_path / "a.txt.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert document.text == "one\ntwo\n"


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": f"text {i}é\r\nb", "n": i, "in": {"of": ["x", None]}, "raw": b"abc"} for i in range(200)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=70)
    (file,) = corpus_files([tmp_path]).files
    found = list(read_file(file))
    assert len(found) == 400
    assert [(d.name, d.text, d.lines) for d in found[:2]] == [
        ("a.parquet#1.text", "text 0é\nb", ((0, 1),)),
        ("a.parquet#1.in.of.0", "x", ((0, 1),)),
    ]
    assert [(d.name, d.text) for d in read_file(file, text_fields=["text"])][199] == ("a.parquet#200", "text 199é\nb")


def test_damaged_parquet_is_an_error_with_its_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["words"] * 99}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    for broken in (b"", b"PAR1", content[:-9], content[:4] + b"\xff" * 60 + content[64:]):
        (tmp_path / "a.parquet").write_bytes(broken)
        (file,) = corpus_files([tmp_path]).files
        with pytest.raises(ValueError, match=r"a\.parquet: row \d+ cannot be read"):
            list(read_file(file))
