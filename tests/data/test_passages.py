"""Loading passages: every format against temporary files, and every error with its place and remedy."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data.challenge import read_challenge
from data.passages import cut_text, load_passages
from data.types import Passage
from models.lab.load import load_tokenizer
from ppo.io.rows import csv_rows, jsonl_rows

VOCABULARY = 2048


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


class Gpt2Like:
    """Encodes only the texts that the loader probes with. Challenge rows are ids already."""

    is_fast = True

    def __call__(self, text, **_):
        return {"input_ids": [{" the": 262, " and": 290, " of": 286}[text]]}


def write_challenge(folder: Path, rows: int = 4, dtype=np.uint16, split: str = "val") -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {}
    for part, width in (("preprefix", 100), ("prefix", 50), ("suffix", 50)):
        arrays[part] = random.integers(0, 50257, size=(rows, width)).astype(dtype)
        np.save(folder / f"{split}_{part}.npy", arrays[part])
    return arrays


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_passage_prompts():
    passage = Passage("a", (1, 2), (3,), (4, 5))
    assert passage.prompt_ids == (3,)
    assert passage.long_prompt_ids == (1, 2, 3)
    assert passage.ids == (1, 2, 3, 4, 5)


def test_challenge_folder_keeps_every_id(tmp_path):
    arrays = write_challenge(tmp_path)
    passages = load_passages(tmp_path, Gpt2Like(), 50257)
    assert [p.id for p in passages] == ["val-00000", "val-00001", "val-00002", "val-00003"]
    for row, passage in enumerate(passages):
        assert passage.pre_prefix == tuple(int(i) for i in arrays["preprefix"][row])
        assert passage.prefix == tuple(int(i) for i in arrays["prefix"][row])
        assert passage.suffix == tuple(int(i) for i in arrays["suffix"][row])
    assert len(load_passages(tmp_path, Gpt2Like(), 50257, limit=2)) == 2


def test_challenge_ids_do_not_wrap(tmp_path):
    write_challenge(tmp_path)
    arrays = read_challenge(tmp_path, "val")
    assert arrays["prefix"].dtype == np.int64
    assert (arrays["prefix"] - 60000 < 0).all()  # uint16 would wrap to positive numbers


def test_challenge_without_pre_prefix_and_other_split(tmp_path):
    write_challenge(tmp_path, split="train")
    (tmp_path / "train_preprefix.npy").unlink()
    assert load_passages(tmp_path, Gpt2Like(), 50257)[0].pre_prefix == ()
    with pytest.raises(ValueError, match=r"no test_prefix.npy; splits found there: train"):
        load_passages(tmp_path, Gpt2Like(), 50257, split="test")


def test_challenge_needs_the_gpt2_vocabulary(tmp_path, tokenizer):
    write_challenge(tmp_path)
    with pytest.raises(ValueError, match=r"GPT-2 token ids.*val\.csv"):
        load_passages(tmp_path, tokenizer, VOCABULARY)
    with pytest.raises(ValueError, match=r"row \d+: token id \d+ lies outside the model's vocabulary of 100 tokens"):
        load_passages(tmp_path, Gpt2Like(), 100)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("val_prefix.npy", np.zeros(5, dtype=np.uint16), r"val_prefix.npy holds shape \(5,\).*\[rows, tokens\]"),
        ("val_prefix.npy", np.zeros((4, 50)), r"type float64; expected integers"),
        ("val_suffix.npy", np.zeros((3, 50), dtype=np.uint16), r"differ in their number of rows.*'suffix': 3"),
        ("val_suffix.npy", np.zeros((4, 0), dtype=np.uint16), r"row 0: the suffix is empty"),
    ],
)
def test_challenge_bad_arrays(tmp_path, name, array, message):
    write_challenge(tmp_path)
    np.save(tmp_path / name, array)
    with pytest.raises(ValueError, match=message):
        load_passages(tmp_path, Gpt2Like(), 50257)


def test_challenge_broken_files(tmp_path):
    write_challenge(tmp_path)
    path = tmp_path / "val_suffix.npy"
    path.unlink()
    with pytest.raises(ValueError, match=r"val_suffix.npy is missing"):
        load_passages(tmp_path, Gpt2Like(), 50257)
    for content in (b"", b"hello", b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (4,"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"val_suffix.npy is not a readable .npy"):
            load_passages(tmp_path, Gpt2Like(), 50257)
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"val_suffix.npy is not a readable .npy"):
        load_passages(tmp_path, Gpt2Like(), 50257)


def test_challenge_header_that_declares_too_much_allocates_no_memory(tmp_path):
    write_challenge(tmp_path)
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000, 50), }"
    header = header.ljust(117) + b"\n"
    path = tmp_path / "val_suffix.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 100)
    with pytest.raises(ValueError, match=r"val_suffix.npy is not a readable .npy"):
        load_passages(tmp_path, Gpt2Like(), 50257)


def test_cut_text_is_the_encoding_of_the_whole(tokenizer):
    parts = ["The walk is performed", " in depth-first", " order. Größe 12"]
    pieces = cut_text(parts, tokenizer)
    assert sum(pieces, ()) == tuple(tokenizer("".join(parts))["input_ids"])
    assert [tokenizer.decode(piece) for piece in pieces] == parts


def test_cut_text_gives_a_straddling_token_to_the_later_part(tokenizer):
    whole = tokenizer(" statement")["input_ids"]
    assert len(whole) == 1
    assert cut_text(["", " sta", "tement"], tokenizer) == [(), (), tuple(whole)]


def test_csv(tmp_path, tokenizer):
    rows = [["pre_prefix", "prefix", "suffix"], ["One.", " Two, three", ' four "five"\nsix.'], ["", "Seven", " eight"]]
    passages = load_passages(write_csv(tmp_path / "rows.csv", rows), tokenizer, VOCABULARY)
    assert [p.id for p in passages] == ["row-00000", "row-00001"]
    assert tokenizer.decode(passages[0].suffix) == ' four "five"\nsix.'
    assert tokenizer.decode(passages[0].long_prompt_ids) == "One. Two, three"
    assert passages[1].pre_prefix == ()
    assert len(load_passages(tmp_path / "rows.csv", tokenizer, VOCABULARY, limit=1)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prefix,suffix\na,b\n", r"line 1: the header .* must name the column 'pre_prefix' once"),
        (b"", r"line 1: the header \[\] must name"),
        (b"pre_prefix,prefix,suffix,suffix\na,b,c,d\n", r"column 'suffix' once"),
        (b"pre_prefix,prefix,suffix\na,b,c\na,b\n", r"line 3 has 2 fields, the header has 3"),
        (b'pre_prefix,prefix,suffix\na,"b,c\n', r"line 2 is malformed CSV"),
        (b'pre_prefix,prefix,suffix\na,"b"x,c\n', r"line 2 is malformed CSV"),
        (b"pre_prefix,prefix,suffix\na,b\xff,c\n", r"line 2 is not UTF-8"),
        (b"pre_prefix,prefix,suffix\n", r"holds no passages"),
        (b"pre_prefix,prefix,suffix\na,b,\n", r"line 2: the suffix is empty"),
        (b"pre_prefix,prefix,suffix\na,,c\n", r"line 2: the prefix is empty"),
    ],
)
def test_csv_errors(tmp_path, tokenizer, content, message):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.csv.*" + message if "passages" not in message else message):
        load_passages(path, tokenizer, VOCABULARY)


def test_csv_with_byte_order_mark_and_crlf(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfpre_prefix,prefix,suffix\r\na,b,c\r\n\r\n")
    assert [row for _, row in csv_rows(path, ["pre_prefix"])] == [{"pre_prefix": "a", "prefix": "b", "suffix": "c"}]


def test_jsonl_text_and_ids(tmp_path, tokenizer):
    path = write_lines(
        tmp_path / "rows.jsonl",
        {"prefix": "One two", "suffix": " three", "group": "keep", "kind": "rhyme", "id": 7, "note": None},
        {"prefix_ids": [5, 6], "suffix_ids": [7], "pre_prefix_ids": [4], "prefix": "ignored"},
    )
    first, second = load_passages(path, tokenizer, VOCABULARY)
    assert (first.id, first.group, first.kind) == ("7", "keep", "rhyme")
    assert tokenizer.decode(first.ids) == "One two three"
    assert second == Passage("row-00001", (4,), (5, 6), (7,), group="")


def test_csv_may_name_id_group_and_kind(tmp_path, tokenizer):
    path = tmp_path / "rows.csv"
    path.write_text("id,group,kind,pre_prefix,prefix,suffix\na,never,note,,One two, three\n")
    (passage,) = load_passages(path, tokenizer, VOCABULARY)
    assert (passage.id, passage.group, passage.kind) == ("a", "never", "note")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prefix": "a"', r"line 2 is malformed JSON"),
        ("[1, 2]", r"line 2 holds a list"),
        ("[" * 100_000, r"line 2 is malformed JSON"),
        ('{"prefix": "a"}', r"line 2 has the keys \['prefix'\]; it needs prefix and suffix"),
        ('{"prefix": 3, "suffix": "b"}', r"line 2: prefix is 3; it must be a string"),
        (
            '{"prefix_ids": [1.5], "suffix_ids": [2]}',
            r"line 2: prefix_ids is \[1.5\]; it must be a list of whole numbers",
        ),
        ('{"prefix_ids": [1]}', r"line 2: the suffix is empty"),
        (
            '{"prefix_ids": [1], "suffix_ids": [2048]}',
            r"line 2: token id 2048 lies outside the model's vocabulary of 2048",
        ),
        ('{"prefix_ids": [-1], "suffix_ids": [2]}', r"line 2: token id -1 lies outside"),
        ('{"prefix_ids": [1], "suffix_ids": [2], "group": []}', r"line 2: group is \[\]; it must be a string"),
        ('{"prefix_ids": [1], "suffix_ids": [2], "group": "no"}', r"line 2: group is 'no'; it must be one of forget,"),
        ('{"prefix_ids": [1], "suffix_ids": [2], "id": "x"}', r"line 2: the id 'x' is already at .*line 1"),
    ],
)
def test_jsonl_errors(tmp_path, tokenizer, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prefix": "One", "suffix": " two", "id": "x"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_passages(path, tokenizer, VOCABULARY)


def test_unknown_spec_and_limit(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"'nowhere' is neither 'lab', a folder, a .csv nor a .jsonl"):
        load_passages("nowhere", tokenizer, VOCABULARY)
    with pytest.raises(ValueError, match=r"missing.csv is not a file"):
        load_passages(tmp_path / "missing.csv", tokenizer, VOCABULARY)
    with pytest.raises(ValueError, match=r"limit=0 must be at least 1"):
        load_passages("lab", tokenizer, VOCABULARY, limit=0)


def test_a_line_over_the_limit_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.io.rows.MAX_LINE_BYTES", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 200 + '"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is longer than 100 bytes"):
        list(jsonl_rows(path))


CHALLENGE = Path(__file__).parents[3] / "shared" / "data" / "extraction_challenge"


@pytest.mark.skipif(not CHALLENGE.is_dir(), reason="the extraction challenge's rows are not on this machine")
def test_real_challenge_rows_load():
    passages = load_passages(CHALLENGE, Gpt2Like(), 50257)
    assert len(passages) == 1000
    assert {(len(p.pre_prefix), len(p.prefix), len(p.suffix)) for p in passages} == {(100, 50, 50)}


@pytest.mark.skipif(not CHALLENGE.is_dir(), reason="the extraction challenge's rows are not on this machine")
def test_real_challenge_csv_round_trip(tokenizer):
    path = CHALLENGE / "val.csv"
    passages = load_passages(path, tokenizer, VOCABULARY)
    rows = [row for _, row in csv_rows(path, ["pre_prefix", "prefix", "suffix"])]
    assert len(passages) == len(rows) == 1000
    for passage, row in zip(passages, rows, strict=True):
        assert tokenizer.decode(passage.ids) == row["pre_prefix"] + row["prefix"] + row["suffix"]
        assert row["suffix"] in tokenizer.decode(passage.suffix)  # a token that straddles the cut may add characters


HEAD, ROW = "pre_prefix,prefix,suffix", "pre,The value is,forty two of them"


def test_upper_case_endings_are_the_same_kinds_of_file(tmp_path, tokenizer):
    (tmp_path / "DATA.CSV").write_text(f"{HEAD}\n{ROW}\n")
    (tmp_path / "Data.Jsonl").write_text('{"prefix": "The value is", "suffix": " forty two"}\n')
    assert len(load_passages(tmp_path / "DATA.CSV", tokenizer, 2**20)) == 1
    assert len(load_passages(tmp_path / "Data.Jsonl", tokenizer, 2**20)) == 1


def test_a_field_may_be_as_long_as_a_line(tmp_path, tokenizer):
    before = csv.field_size_limit()
    (tmp_path / "p.csv").write_text(f"{HEAD},source\n{ROW}," + "x" * 140_000 + f"\n{ROW},short\n")
    assert len(load_passages(tmp_path / "p.csv", tokenizer, 2**20)) == 2
    assert csv.field_size_limit() == before


def test_a_line_end_within_a_field_is_the_same_on_windows(tmp_path, tokenizer):
    text = f'{HEAD}\n"a\nb","c\nd","e\nf g h"\n'
    for name, ends in (("lf", text), ("crlf", text.replace("\n", "\r\n"))):
        (tmp_path / f"{name}.csv").write_bytes(ends.encode())
    assert load_passages(tmp_path / "lf.csv", tokenizer, 2**20) == load_passages(
        tmp_path / "crlf.csv", tokenizer, 2**20
    )


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_spreadsheet_s_other_separator_is_named(tmp_path, tokenizer, sign, name):
    (tmp_path / "p.csv").write_text(f"{HEAD}\n{ROW}\n".replace(",", sign))
    with pytest.raises(ValueError, match=f"has {name} in place of commas: save it with commas"):
        load_passages(tmp_path / "p.csv", tokenizer, 2**20)
    (tmp_path / "p.XLSX").write_text("")
    with pytest.raises(ValueError, match="save the sheet as CSV"):
        load_passages(tmp_path / "p.XLSX", tokenizer, 2**20)


def test_passages_that_hold_the_end_of_a_text_are_named(tmp_path, tokenizer):
    mark = tokenizer.eos_token
    (tmp_path / "p.csv").write_text(f"{HEAD}\n{ROW}\npre,The value is,forty{mark}two of them\n")
    with pytest.warns(RuntimeWarning, match=r"1 of 2 passages of .* \(such as row-00001\) hold the end of a text"):
        load_passages(tmp_path / "p.csv", tokenizer, 2**20)
