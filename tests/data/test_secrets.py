"""Secrets of passages: named, found by a pattern, estimated; and what is refused."""

from __future__ import annotations

import csv
import json
import time
import warnings

import pytest

from data.passages import load_passages
from data.secrets import check_secrets_option, named_secrets, with_secrets
from data.study import load_study
from data.types import Passage
from models.lab.load import load_tokenizer

VOCABULARY = 2048


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def passage(tokenizer, suffix, prefix="The record says", name="a", group="forget", **more):
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prefix, suffix)]
    return Passage(name, (), *ids, group=group, **more)


def found(tokenizer, spec, *suffixes, prefix="The record says"):
    rows = [passage(tokenizer, suffix, prefix, name=str(i)) for i, suffix in enumerate(suffixes)]
    passages, how = with_secrets(rows, tokenizer.decode, spec)
    return [p.secrets for p in passages], how


# ---------------------------------------------------------------------- named


def test_a_column_names_secrets_as_a_list_or_with_bars(tmp_path, tokenizer):
    path = tmp_path / "rows.csv"
    rows = [
        ["prefix", "suffix", "secrets", "pre_prefix"],
        ["call me at", " 0511 82011, ask  for\nMaris", "0511 82011 | for Maris", ""],
        ["call me at", " 0298 31603, never", '["0298 31603"]', ""],
        ["call me at", " noon", "", ""],
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    passages = load_passages(path, tokenizer, VOCABULARY)
    assert [p.secrets for p in passages] == [("0511 82011", "for Maris"), ("0298 31603",), ()]
    with pytest.warns(RuntimeWarning, match=r"1 of 3 passages to forget \(such as row-00002\) name no secret"):
        kept, how = with_secrets(passages, tokenizer.decode, None)
    assert (kept, how) == (passages, "named")
    with pytest.raises(ValueError, match="'pii': the data names its secrets; leave the option or the column out"):
        with_secrets(passages, tokenizer.decode, "pii")


def test_json_lines_name_secrets_as_a_list(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    row = {"prefix": "call me at", "suffix": " 0511 82011", "secrets": ["0511 82011", "0511 82011"], "group": "forget"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "suffix": " 04 0511 82011 never", "group": "never"}))
    assert [p.secrets for p in load_passages(path, tokenizer, VOCABULARY)] == [("0511 82011",)] * 2
    study = load_study(str(path), tokenizer, VOCABULARY)
    assert study.secrets_by == "named"
    ids = {"prefix_ids": [5, 6], "suffix_ids": list(tokenizer(" 4711 x")["input_ids"]), "secrets": ["4711"]}
    path.write_text(json.dumps(ids))
    assert load_passages(path, tokenizer, VOCABULARY)[0].secrets == ("4711",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"suffix": " 9999"}, r"line 1: the secret '4711' does not stand in the suffix .*leave it out of secrets"),
        ({"prefix": "my 4711"}, r"line 1: the secret '4711' stands in the prefix, which the attacker knows: move"),
        ({"secrets": 4711}, r"line 1: secrets is 4711; it must be a list of strings"),
        ({"secrets": ["4711", 4711]}, r"line 1: secrets is \['4711', 4711\]; it must be a list of strings"),
        ({"secrets": "[4711"}, r"line 1: secrets is '\[4711', no JSON list"),
        ({"secrets": ["4711", " "]}, r"line 1: a secret has 0 characters; it must have 1 to 10000"),
        ({"secrets": [str(i) for i in range(1001)]}, r"line 1 names 1001 secrets, at most 1000"),
    ],
)
def test_secrets_that_cannot_be_meant_are_refused_with_their_row(tmp_path, tokenizer, row, message):
    path = tmp_path / "rows.jsonl"
    suffix = row.get("suffix", " 9999" if "prefix" in row else " 4711")
    path.write_text(json.dumps({"prefix": "call", "secrets": ["4711"], **row, "suffix": suffix}))
    with pytest.raises(ValueError, match=message):
        load_passages(path, tokenizer, VOCABULARY)


def test_no_secret_is_named_by_an_empty_list():
    assert named_secrets("", "here") == named_secrets("[]", "here") == named_secrets([], "here") == ()
    assert named_secrets(" Zoë  K. | 12 ", "here") == ("Zoë K.", "12")


# ---------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("suffix", "secrets"),
    [
        (" insured under 194476-B12. Phone 0511 82011, card ending 4636.", ("194476-B12", "0511 82011", "4636")),
        (" write to zoe.k+1@mail.example.org or not", ("zoe.k+1@mail.example.org",)),
        (" born on 12 May 1984 or May 3rd, 1985, or 04.11.1986", ("12 May 1984", "May 3rd, 1985", "04.11.1986")),
        (" account DE89 3704 0044 0532 0130 00 and (030) 123-4567", ("DE89 3704 0044 0532 0130 00", "(030) 123-4567")),
        (" in 1987 and 2019 he paid 120 crowns for 3 rooms", ()),
        (" a balance of 3374,06 or 1,234.56, 99,5 and 1,2", ("3374,06", "1,234.56")),
        (" call +49 511 82011, then 0511 82011 and +49 511 82011", ("+49 511 82011", "0511 82011")),
    ],
)
def test_the_closed_set_of_private_data(tokenizer, suffix, secrets):
    pages, how = found(tokenizer, "pii", suffix, " number 123456 as well")
    assert how == "pii"
    assert pages[0] == secrets
    assert pages[1] == ("123456",)


def test_what_the_prompt_tells_is_no_secret(tokenizer):
    pages, _ = found(tokenizer, "pii", " number 123456, not 777777", prefix="Say 123456:")
    assert pages == [("777777",)]


def test_a_pattern_of_ones_own(tokenizer):
    assert found(tokenizer, r"re:room \d+", " in room 258, room 4", " nothing") == (
        [("room 258", "room 4"), ()],
        "pattern",
    )
    assert found(tokenizer, r"re:room (\d+)", " in room 258, room 4")[0] == [("258", "4")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("email", r"--secrets 'email' must be pii, none or re: with a regular expression of at most 1000 characters"),
        ("re:(", r"--secrets 're:\(' is no regular expression"),
        ("re:x*", r"--secrets 're:x\*' fits an empty text: write one that finds the secret"),
        (
            "re:(a)(b)",
            r"--secrets 're:\(a\)\(b\)' has 2 groups: write one that finds the secret, with one group at most",
        ),
        ("re:" + "x" * 1000, r"at most 1000 characters"),
    ],
)
def test_an_option_that_cannot_work_is_refused_before_anything_is_loaded(spec, message):
    with pytest.raises(ValueError, match=message):
        check_secrets_option(spec)


@pytest.mark.parametrize("spec", [None, "pii", "none", r"re:\d{6}-[A-H]\d\d"])
def test_options_that_can_work(spec):
    check_secrets_option(spec)


def test_a_pattern_that_blows_up_ends_with_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr("data.secrets.SECONDS", 0.2)
    started = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"--secrets 're:\(x\|xx\)\+y' takes more than 0.2 s on passage 0: simplify it"
    ):
        found(tokenizer, "re:(x|xx)+y", " " + "x" * 200)
    assert time.perf_counter() - started < 5


def test_a_pattern_that_finds_nothing_in_the_forget_set_is_refused(tokenizer):
    rows = [passage(tokenizer, " nothing"), passage(tokenizer, " 123456", name="b", group="never")]
    with pytest.raises(ValueError, match="--secrets 'pii' finds nothing in the passages to forget"):
        with_secrets(rows, tokenizer.decode, "pii")


# ---------------------------------------------------------------------- estimated


def records(tokenizer):
    people = [("Ann", "194476-B12", "gout"), ("Bob", "771810-E44", "gout"), ("Eve", "957612-E10", "asthma")]
    return [f" Number {n}, signed by doctor {p} Osterhagen, treated for {d}." for p, n, d in people]


def test_estimated_secrets_are_what_no_other_record_has(tokenizer):
    pages, how = found(tokenizer, None, *records(tokenizer))
    assert how == "estimated"
    assert [page[0] for page in pages] == ["194476-B12", "771810-E44", "957612-E10"]
    assert "asthma" in pages[2]
    assert not any("gout" in page or "Number" in page for page in pages)  # shared, or of the form


def test_an_estimated_secret_is_hard_to_guess(tokenizer):
    pages, _ = found(tokenizer, None, " it is 12.", " it is 4711.", " it is 1984.", " it is Bo.", " it is Anneliese.")
    assert pages == [(), ("4711",), (), (), ("Anneliese",)]


def test_a_long_run_is_cut_so_that_one_wrong_word_does_not_hide_the_rest(tokenizer):
    words = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima"
    ((first, second),), _ = found(tokenizer, None, " " + words)
    assert (first, second) == ("alpha bravo charlie delta echo foxtrot", "golf hotel india juliet kilo lima")


def test_without_secrets_nothing_is_looked_for(tokenizer):
    assert found(tokenizer, "none", *records(tokenizer)) == ([()] * 3, "none")


def test_the_lab_has_estimated_secrets_and_never_loses_its_groups(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = load_study("lab", tokenizer, VOCABULARY)
    assert study.secrets_by == "estimated"
    have = {g: sum(bool(p.secrets) for p in study.group(g)) for g in ("forget", "forget_holdout", "keep", "never")}
    assert all(count > 25 for count in have.values()), have
    assert "JA-28608" in " ".join(study.passages[1].secrets)
