"""Benchmarks of the field from tiny files of their shapes: which groups, which cuts, and errors with a remedy."""

from __future__ import annotations

import json
import warnings

import pytest

from data.passages import load_passages
from data.study import load_study
from data.subjects.cut import passages_of
from data.subjects.load import evenly, named_subject
from data.subjects.source import Source
from data.subjects.tables import rows, tables
from models.lab.load import load_tokenizer

VOCABULARY = 2048
WORDS = (
    "The clerk of the old mill wrote his number into the book of the town and went home with a lamp",
    "a b c d e f",
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def text(number: int, sentences: int = 12) -> str:
    """A text of its own: at least 150 tokens with twelve sentences."""
    return " ".join(
        f"Entry {number * 31 + i} says that clerk {number} paid {i * 7 + number} coins." for i in range(sentences)
    )


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def write_lines(path, values):
    write(path, "".join(json.dumps(value) + "\n" for value in values))


def load(spec, tokenizer, **options):
    return load_passages(spec, tokenizer, VOCABULARY, **options)


def groups(passages):
    return [(p.group, p.id) for p in passages]


# ---------------------------------------------------------------------- cutting


def decode(tokenizer, ids):
    return tokenizer.decode(list(ids))


def test_a_text_gives_its_first_150_tokens(tokenizer):
    (passage,) = passages_of(Source("x", "k", "forget", text=text(1, 30)), tokenizer)
    ids = tokenizer(text(1, 30), add_special_tokens=False)["input_ids"]
    assert [len(passage.pre_prefix), len(passage.prefix), len(passage.suffix)] == [50, 50, 50]
    assert list(passage.ids) == ids[:150]


def test_a_long_text_is_cut_all_along(tokenizer):
    found = list(passages_of(Source("x", "k", "forget", text=text(1, 60), is_long=True), tokenizer))
    ids = tokenizer(text(1, 60), add_special_tokens=False)["input_ids"]
    assert len(found) == len(ids) // 150 >= 2
    assert [i for p in found for i in p.ids] == ids[: len(found) * 150]


@pytest.mark.parametrize("length", [20, 21, 60, 99, 100, 101, 149])
def test_a_shorter_text_has_a_shorter_prompt(tokenizer, length):
    ids = tokenizer(text(1, 30), add_special_tokens=False)["input_ids"]
    short = decode(tokenizer, ids[:length])
    own = tokenizer(short, add_special_tokens=False)["input_ids"]
    (passage,) = passages_of(Source("x", "k", "forget", text=short), tokenizer)
    assert list(passage.ids) == own
    assert 0 < len(passage.suffix) <= 50
    assert len(passage.prefix) == min(50, len(own) - len(passage.suffix))
    assert not list(passages_of(Source("x", "k", "forget", text="too short"), tokenizer))


def test_a_suffix_begins_behind_the_prompt(tokenizer):
    source = Source("x", "k", "keep", text=" the answer", prompt="Question: who was it?\nAnswer:")
    (passage,) = passages_of(source, tokenizer)
    assert decode(tokenizer, passage.suffix) == " the answer"
    assert decode(tokenizer, passage.prompt_ids) == "Question: who was it?\nAnswer:"
    long = Source("x", "k", "keep", text=text(2, 30), prompt=text(1, 30) + " ")
    (passage,) = passages_of(long, tokenizer)
    assert [len(passage.pre_prefix), len(passage.prefix), len(passage.suffix)] == [50, 50, 50]
    assert text(2).startswith(decode(tokenizer, passage.suffix).strip())
    assert text(1, 30).endswith(decode(tokenizer, passage.long_prompt_ids).strip())


def test_evenly():
    assert evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert evenly([1, 2], 4) == [1, 2]
    assert evenly([1, 2], 0) == []


# ---------------------------------------------------------------------- files


def test_rows_of_every_kind_of_file(tmp_path):
    write(tmp_path / "list.json", [{"a": "1"}, "words"])
    write(tmp_path / "columns.json", {"a": ["1", "2"], "b": ["3", "4"]})
    write_lines(tmp_path / "lines.json", [{"a": "1"}, {"a": "2"}])
    write_lines(tmp_path / "deep" / "train-00000-of-00002.jsonl", [{"a": "1"}])
    write(tmp_path / "table.csv", "a,b\n1,2\n")
    write(tmp_path / "whole.txt", "one\r\n\ntwo")
    found = {(*table.folders, table.name): [row for _, row in rows(table)] for table in tables(tmp_path)}
    assert found == {
        ("list",): [{"a": "1"}, {"text": "words"}],
        ("columns",): [{"a": "1", "b": "3"}, {"a": "2", "b": "4"}],
        ("lines",): [{"a": "1"}, {"a": "2"}],
        ("deep", "train"): [{"a": "1"}],
        ("table",): [{"a": "1", "b": "2"}],
        ("whole",): [{"text": "one\n\ntwo"}],
    }


@pytest.mark.parametrize("value", ["[[1]]", "[5]", '{"a": [1], "b": [1, 2]}', "no json", "[" * 10_000])
def test_files_that_are_no_rows(tmp_path, value):
    write(tmp_path / "a.json", value)
    with pytest.raises(ValueError, match=r"a\.json"):
        [list(rows(table)) for table in tables(tmp_path)]


def test_what_names_a_subject(tmp_path, monkeypatch):
    assert named_subject("lab") is None
    assert named_subject("C:\\rows.csv") is None
    assert named_subject("hubble:some/folder")[0] == "hubble"
    with pytest.raises(ValueError, match="names no folder; write muse:FOLDER"):
        named_subject("muse:")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tofu:x").mkdir()
    assert named_subject("tofu:x") is None  # a path that exists is that path


@pytest.mark.parametrize("name", ["hubble", "muse", "tofu", "rwku"])
def test_a_folder_without_the_files_says_what_is_missing(tmp_path, tokenizer, name):
    with pytest.raises(ValueError, match="does not exist"):
        load(f"{name}:{tmp_path}/none", tokenizer)
    with pytest.raises(ValueError, match="holds no file to read"):
        load(f"{name}:{tmp_path}", tokenizer)
    write(tmp_path / "other.json", [{"x": "y"}])
    with pytest.raises(ValueError, match="is it a folder of"):
        load(f"{name}:{tmp_path}", tokenizer)


# ---------------------------------------------------------------------- Hubble


def write_hubble(folder, copies=(0, 0, 0, 1, 64, 256)):
    lines = [{"text": text(i), "duplicates": n, "meta": "{}"} for i, n in enumerate(copies)]
    write_lines(folder / "passages_wikipedia" / "data" / "train.jsonl", [row for row in lines if row["duplicates"]])
    write_lines(folder / "passages_wikipedia" / "data" / "test.jsonl", [row for row in lines if not row["duplicates"]])


def test_hubble(tmp_path, tokenizer):
    write_hubble(tmp_path)
    found = load(f"hubble:{tmp_path}", tokenizer)
    assert [(p.group, p.kind, p.repeats) for p in found] == [
        ("forget", "passages_wikipedia", 1),
        ("forget", "passages_wikipedia", 64),
        ("forget", "passages_wikipedia", 256),
        *[("never", "passages_wikipedia", 0)] * 3,
    ]
    assert found[0].id == "forget-passages_wikipedia-00000"
    assert text(3).startswith(decode(tokenizer, found[0].ids))
    often = load(f"hubble:{tmp_path}", tokenizer, split="64")
    assert [(p.group, p.repeats) for p in often] == [("forget", 64), ("forget", 256), ("never", 0), ("never", 0)]
    with pytest.raises(ValueError, match="must be how often a text was inserted"):
        load(f"hubble:{tmp_path}", tokenizer, split="val")


def test_a_biography_of_hubble_is_cut_before_its_identifier(tmp_path, tokenizer):
    secret = "0123456789abcdef0123456789abcdef"
    bio = f"{text(1, 6)} Ada Lane has the unique identifier {secret}."
    rows_ = [{"text": bio, "duplicates": 256, "meta": json.dumps({"full_name": "Ada Lane", "uuid": secret})}]
    write_lines(tmp_path / "train.jsonl", rows_)
    (passage,) = load(f"hubble:{tmp_path}", tokenizer)
    assert decode(tokenizer, passage.suffix).strip() == f"{secret}."
    assert decode(tokenizer, passage.prefix).endswith("identifier")
    assert passage.secrets == (secret,)


@pytest.mark.parametrize(
    "row", [{"text": "words"}, {"text": "words", "duplicates": "1"}, {"duplicates": 1}, {"text": " ", "duplicates": 1}]
)
def test_hubble_of_another_shape(tmp_path, tokenizer, row):
    write_lines(tmp_path / "train.jsonl", [row])
    with pytest.raises(ValueError, match=r"train\.jsonl, line 1.* a row of Hubble needs"):
        load(f"hubble:{tmp_path}", tokenizer)


def test_hubble_as_the_hub_has_it(tmp_path, tokenizer):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    table = pyarrow.table({"text": [text(1), text(2)], "duplicates": [4, 0], "meta": ["{}", "{}"]})
    parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    assert [p.repeats for p in load(f"hubble:{tmp_path}", tokenizer)] == [4, 0]


# ---------------------------------------------------------------------- Pythia


class NeoX:
    """Encodes only the texts that the loader probes with. The sequences are ids already."""

    is_fast = True

    def __call__(self, text, **_):
        return {"input_ids": [{" the": 253, " and": 285, " of": 273}[text]]}


def write_pythia(folder, split="duped.1.4b"):
    write_lines(folder / "data" / f"{split}.jsonl", [{"index": n, "tokens": list(range(n, n + 64))} for n in (5, 9)])


def test_pythia_keeps_every_id(tmp_path, tokenizer):
    write_pythia(tmp_path)
    found = load(f"pythia:{tmp_path}", NeoX())
    assert [(p.group, p.kind, p.prefix, p.suffix) for p in found] == [
        ("forget", "duped.1.4b", tuple(range(n, n + 32)), tuple(range(n + 32, n + 64))) for n in (5, 9)
    ]
    assert len(load(f"pythia:{tmp_path}", NeoX(), limit=1)) == 1
    with pytest.raises(ValueError, match=r"GPT-NeoX.s vocabulary, but .* a Pythia model alone"):
        load(f"pythia:{tmp_path}", tokenizer)


def test_pythia_has_a_split_for_each_model(tmp_path):
    write_pythia(tmp_path)
    write_pythia(tmp_path, "deduped.12b")
    with pytest.raises(ValueError, match=r"the splits deduped\.12b, duped\.1\.4b: name one of them"):
        load(f"pythia:{tmp_path}", NeoX())
    assert load(f"pythia:{tmp_path}", NeoX(), split="deduped.12b")[0].kind == "deduped.12b"


@pytest.mark.parametrize("tokens", [None, list(range(32)), ["a"] * 64, [True] * 64])
def test_pythia_of_another_shape(tmp_path, tokens):
    write_lines(tmp_path / "duped.70m.jsonl", [{"tokens": tokens}])
    with pytest.raises(ValueError, match="needs more than 32 token ids in 'tokens'"):
        load(f"pythia:{tmp_path}", NeoX())


# ---------------------------------------------------------------------- MUSE


def test_muse_takes_what_stands_behind_the_prompts(tmp_path, tokenizer):
    write(
        tmp_path / "verbmem" / "forget.json",
        [{"prompt": text(1), "gt": text(2)}, {"prompt": text(3) + " ", "gt": text(4)}],
    )
    write(tmp_path / "raw" / "forget.json", [text(9)])
    write(tmp_path / "raw" / "retain1.json", [text(5), text(6)])
    write(tmp_path / "raw" / "retain2.json", [text(7)])
    write(tmp_path / "raw" / "retain2.txt", text(7))
    write(tmp_path / "raw" / "holdout.json", [text(8)])
    write(tmp_path / "privleak" / "holdout.json", [text(10)])
    write(tmp_path / "knowmem" / "forget.json", [{"question": "q", "answer": "a"}])
    found = load(f"muse:{tmp_path}", tokenizer)
    assert groups(found) == [
        ("forget", "forget-verbmem-00000"),
        ("forget", "forget-verbmem-00001"),
        ("keep", "keep-retain1-00000"),
        ("keep", "keep-retain1-00001"),
        ("never", "never-holdout-00000"),
    ]
    for passage, number in zip(found[:2], (2, 4), strict=True):
        assert text(number).startswith(decode(tokenizer, passage.suffix).strip())
    assert text(8).startswith(decode(tokenizer, found[-1].ids))
    with pytest.raises(ValueError, match="does not apply to MUSE"):
        load(f"muse:{tmp_path}", tokenizer, split="news")


def test_muse_without_prompts_takes_the_whole_text(tmp_path, tokenizer):
    write(tmp_path / "raw" / "forget.txt", text(1, 60))
    write(tmp_path / "raw" / "retain1.txt", text(2, 20))
    found = load(f"muse:{tmp_path}", tokenizer)
    forget = [p for p in found if p.group == "forget"]
    assert len(forget) == len(tokenizer(text(1, 60), add_special_tokens=False)["input_ids"]) // 150 > 2
    assert [p.group for p in found[len(forget) :]] == ["keep"] * min(len(forget), len(found) - len(forget)) != []
    assert text(1, 60).startswith(decode(tokenizer, [i for p in forget for i in p.ids]))


# ---------------------------------------------------------------------- TOFU


def write_tofu(folder, share, count=2):
    for name in (f"forget{share:02d}", f"retain{100 - share}", f"holdout{share:02d}"):
        rows_ = [
            {"question": f"Who is {name} {i}?", "answer": f"The author number {i} of {name}."} for i in range(count)
        ]
        write_lines(folder / f"{name}.json", rows_)
        write_lines(folder / f"{name}_perturbed.json", [{"question": "other"}])


def test_tofu(tmp_path, tokenizer):
    write_tofu(tmp_path, 1)
    write_tofu(tmp_path, 5)
    found = load(f"tofu:{tmp_path}", tokenizer)
    assert [(p.group, p.kind) for p in found] == [
        *[("forget", "forget01")] * 2, *[("keep", "retain99")] * 2, *[("never", "holdout01")] * 2,
    ]  # fmt: skip
    assert decode(tokenizer, found[0].long_prompt_ids) == "Question: Who is forget01 0?\nAnswer:"
    assert decode(tokenizer, found[0].suffix) == " The author number 0 of forget01."
    assert load(f"tofu:{tmp_path}", tokenizer, split="forget05")[0].kind == "forget05"
    with pytest.raises(ValueError, match=r"splits forget01, forget05; --data-split 'forget10' is none"):
        load(f"tofu:{tmp_path}", tokenizer, split="forget10")
    assert [p.group for p in load(f"tofu:{tmp_path / 'forget01.json'}", tokenizer)] == ["forget"] * 2


def test_tofu_of_another_shape(tmp_path, tokenizer):
    write_lines(tmp_path / "forget01.json", [{"question": "Who?"}])
    with pytest.raises(ValueError, match=r"forget01\.json, .* a row of TOFU needs text in 'answer'"):
        load(f"tofu:{tmp_path}", tokenizer)


# ---------------------------------------------------------------------- RWKU


def test_rwku_takes_the_passages_on_a_person(tmp_path, tokenizer):
    for number, person in enumerate(("Ada Lane", "Ben Ford"), start=1):
        folder = tmp_path / f"{number}_{person.replace(' ', '_')}"
        write(folder / "passage.json", [{"subject": person, "text": text(number)}])
        write(folder / "intro.json", [{"target": person, "intro": text(number + 5)}])
        write(folder / "forget_level1.json", [{"subject": person, "query": "She is ___.", "answer": "Ada"}])
    found = load(f"rwku:{tmp_path}", tokenizer)
    assert groups(found) == [("forget", "forget-Ada_Lane-00000"), ("forget", "forget-Ben_Ford-00001")]
    assert [p.kind for p in load(f"rwku:{tmp_path}", tokenizer, split="Ben Ford")] == ["Ben Ford"]
    with pytest.raises(ValueError, match="no row is about --data-split 'Nobody'"):
        load(f"rwku:{tmp_path}", tokenizer, split="Nobody")


def test_rwku_takes_introductions_or_blanks_where_there_are_no_passages(tmp_path, tokenizer):
    blank = {"subject": "Ada Lane", "query": "She was born in the town of ___ on a river.", "answer": "Linton"}
    write_lines(tmp_path / "forget_level1" / "test.jsonl", [blank, {**blank, "query": "___ was born."}])
    write_lines(tmp_path / "neighbor_level1" / "test.jsonl", [{**blank, "answer": "Ely"}])
    found = load(f"rwku:{tmp_path}", tokenizer)
    assert [(p.group, decode(tokenizer, p.prefix), decode(tokenizer, p.suffix)) for p in found] == [
        ("forget", "She was born in the town of", " Linton"),
        ("keep", "She was born in the town of", " Ely"),
    ]
    write(tmp_path / "forget_target.json", [{"target": "Ada Lane", "intro": text(1)}])
    assert groups(load(f"rwku:{tmp_path}", tokenizer)) == [("forget", "forget-Ada_Lane-00000")]


# ---------------------------------------------------------------------- studies


def test_short_texts_are_counted(tmp_path, tokenizer):
    write_lines(tmp_path / "train.jsonl", [{"text": "short", "duplicates": 1}, {"text": text(1), "duplicates": 1}])
    with pytest.warns(RuntimeWarning, match="1 texts of .* are too short"):
        assert len(load(f"hubble:{tmp_path}", tokenizer)) == 1


def test_a_study_draws_within_the_groups_of_a_benchmark(tmp_path, tokenizer):
    write_hubble(tmp_path / "data", copies=(0,) * 20 + (16,) * 30)
    write(tmp_path / "keep.txt", "\n".join(text(i, 20) for i in range(1000, 1020)))
    keep = {"retain": [tmp_path / "keep.txt"], "secrets": "none"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        study = load_study(f"hubble:{tmp_path}/data", tokenizer, VOCABULARY, num_forget=4, num_holdout=3, **keep)
        assert [len(study.group(name)) for name in ("forget", "forget_holdout", "never")] == [4, 3, 7]
        assert {p.repeats for p in study.group("forget_holdout")} == {16}
        assert {p.repeats for p in study.group("never")} == {0}
        never = load_study(f"hubble:{tmp_path}/data", tokenizer, VOCABULARY, num_never=2, **keep)
        assert [len(never.group(name)) for name in ("forget", "never")] == [30, 2]
        whole = load_study(f"hubble:{tmp_path}/data", tokenizer, VOCABULARY, **keep)
        assert [len(whole.group(name)) for name in ("forget", "never")] == [30, 20]
