"""What ``demem.py scan`` does with wrong options, strange text, damaged folders and canaries."""

import json
import re

import pytest

import demem
import unlearning.scan
from eval.scan.results import read_scan
from tests.eval.scan.corpora import records, write_folder
from tests.unlearning.scans import FEW, rows_of, scan, summary_of


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ScanOptions.corpus=() must name something"),
        (["--corpus", "/nonexistent"], "'/nonexistent' does not exist"),
        (["--corpus", ".", "--write-forget-set", "a.csv"], "must end in .jsonl"),
        (["--corpus", "docs", "--prefix-tokens", "x"], "--prefix-tokens takes INT, not 'x'"),
        (["--corpus", "docs", "--prefix-tokens", "250"], "exceed the model's context of 255 tokens"),
        (["--against", "/nonexistent"], "holds no run"),
        (["--corpus", "docs", "--fail-above", "-1"], "must be at least 0"),
        (["--corpus", "docs", "--fail-above", "0", "--controls", "0"], "fail_above=0 needs --controls"),
        (["--corpus", "docs", "--write-forget-set", "a.jsonl", "--controls", "0"], "needs --controls"),
        (["--corpus", "docs", "--region", "uk"], "region='uk' must be two capital letters"),
        (["--canaries", "4", "--fail-above", "0"], "fail_above=0 needs a --corpus to scan"),
        (["--canaries", "4", "--write-forget-set", "a.jsonl"], "needs a --corpus to scan"),
        (["--corpus", "docs", "--write-forget-set", "nowhere/a.jsonl"], "cannot be written: there is no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, arguments, message):
    assert demem.main(["scan", "--out", str(tmp_path / "out"), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]


def test_a_changed_corpus_is_noticed(few, tmp_path, capsys):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    write_folder(folder, FEW[:2])
    assert scan(out, "--corpus", str(folder), "--controls", "0") == 0
    write_folder(folder, FEW[1:3])
    assert scan(out, "--resume") == 2
    assert "was measured on another text: the corpus" in capsys.readouterr().err


EVIL = "\x1b[2Jred\u202e<script>window.isBroken=1</script>\"&'|\u200b"


def test_text_and_names_from_outside_neither_act_nor_hide(tmp_path, capsys, browser):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    folder.mkdir()
    text = records("forget", 1)[0].text
    name = "a\x1b[2J<b>\u202e.txt"
    (folder / name).write_text(f"{EVIL} {text} {EVIL}", encoding="utf-8")
    (folder / f"{EVIL.replace('/', '')}.bin").write_bytes(bytes(9))
    assert scan(out, "--corpus", str(folder), "--controls", "2") == 0
    told = "".join(capsys.readouterr())
    assert not {"\u202e", "\u200b", "\x9b"} & set(told)
    assert "\x1b[2J" not in told
    assert [row["path"] for row in rows_of(out)] == [name]
    with browser.open(out / "scan.html") as page:
        assert page.errors == []
        assert page.run("return window.isBroken ?? null") is None
        assert "<b>" in page.run("return document.querySelector('.passage b').textContent")


@pytest.mark.parametrize(
    "change",
    [{"tokens": "x"}, {"tokens": [1]}, {"lines": [1, -1]}, {"text": 5}, {"personal": [{"kind": "a"}]},
     {"reading": True}, {"against": [5]}, {"log_pz": None}, {"type": 7}],
)  # fmt: skip
def test_a_damaged_scan_is_named(few, tmp_path, capsys, change):
    for name in ("config.json", "scan.jsonl"):
        (tmp_path / "before" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "before" / name).write_bytes((few[0] / name).read_bytes())
    rows = [json.loads(line) for line in (tmp_path / "before" / "scan.jsonl").read_text().splitlines()]
    place = next(i for i, row in enumerate(rows) if row["type"] == "finding")
    rows[place] |= change
    (tmp_path / "before" / "scan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"scan.jsonl, line {place + 1} is damaged: it is no row of a scan"):
        read_scan(tmp_path / "before")


def test_the_scans_own_folder_is_no_part_of_the_corpus(tmp_path):
    (tmp_path / "a.txt").write_text(records("forget", 1)[0].text)
    out = tmp_path / "out"
    assert scan(out, "--corpus", str(tmp_path), "--controls", "0") == 0
    assert [row["document"] for row in rows_of(out, "document")] == ["a.txt"]
    assert scan(out, "--resume") == 0
    assert [row["document"] for row in rows_of(out, "document")] == ["a.txt"]


def test_a_broken_line_does_not_end_a_scan(tmp_path, capsys):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    folder.mkdir()
    text = json.dumps({"text": records("forget", 1)[0].text})
    (folder / "a.csv").write_text('text\nwords\n"not closed\n')
    (folder / "b.jsonl").write_text(f'{{"text": \n{text}\n{{\n')
    assert scan(out, "--corpus", str(folder), "--controls", "0") == 0
    assert {row["document"] for row in rows_of(out)} == {"b.jsonl#2"}
    told = capsys.readouterr().out
    reasons = {row["name"]: row["reason"] for row in rows_of(out, "skipped")}
    assert set(reasons) == {"a.csv", "b.jsonl"}
    assert "line 3 is malformed CSV" in reasons["a.csv"]
    assert reasons["b.jsonl"].startswith("line 1 is malformed JSON")
    assert reasons["b.jsonl"].endswith("; and 1 more")
    assert all(f"skipped: {name} (" in told for name in reasons)


def test_the_estimate_counts_the_tokens_of_this_corpus(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n".join(r.text for r in FEW))
    assert scan(tmp_path / "out", "--corpus", str(tmp_path / "a.txt"), "--controls", "1") == 0
    told = capsys.readouterr().out
    (tokens,) = re.findall(r"about ([\d,]+) tokens", told)
    true = summary_of(tmp_path / "out")["corpus"]["tokens"]
    assert int(tokens.replace(",", "")) == pytest.approx(true, rel=0.05)
    assert "controls of its own cost each recited text up to" in told


def test_the_region_reaches_the_recogniser(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(unlearning.scan, "personal_data", lambda text, *, region: asked.append(region) or [])
    (tmp_path / "a.txt").write_text(records("forget", 1)[0].text)
    assert scan(tmp_path / "out", "--corpus", str(tmp_path / "a.txt"), "--controls", "0", "--region", "GB") == 0
    assert set(asked) == {"GB"}


def test_canaries_need_no_corpus(tmp_path, capsys):
    assert demem.main(["scan", "--canaries", "8", "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "canaries.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    told = capsys.readouterr().out
    assert "exposure in this model" in told
    assert not any(row["text"] in told for row in rows)
    assert (tmp_path / "out" / "canaries.jsonl").stat().st_mode & 0o777 == 0o600


def test_canaries_go_on_with_their_seed_and_are_never_replaced(tmp_path, capsys):
    out = tmp_path / "out"
    assert demem.main(["scan", "--canaries", "4", "--seed", "7", "--out", str(out)]) == 0
    before = (out / "canaries.jsonl").read_bytes()
    assert demem.main(["scan", "--resume", "--out", str(out)]) == 0
    assert (out / "canaries.jsonl").read_bytes() == before
    assert demem.main(["scan", "--resume", "--seed", "8", "--out", str(out)]) == 2
    assert "--seed 8 is not this run's 7" in capsys.readouterr().err
    settings = json.loads((out / "config.json").read_text())
    settings["options"]["seed"] = 0  # of a folder that was written otherwise
    (out / "config.json").write_text(json.dumps(settings))
    assert demem.main(["scan", "--resume", "--out", str(out)]) == 2
    assert "holds other canaries" in capsys.readouterr().err
    assert (out / "canaries.jsonl").read_bytes() == before


def test_a_comparison_names_what_is_wrong_with_the_earlier_scan(few, tmp_path, capsys):
    assert demem.main(["scan", "--canaries", "4", "--out", str(tmp_path / "canaries")]) == 0
    assert scan(tmp_path / "a", "--against", str(tmp_path / "canaries")) == 2
    assert "canaries holds no scan of a corpus" in capsys.readouterr().err
    assert scan(tmp_path / "b", "--against", str(few[0]), "--corpus", "docs") == 2
    told = capsys.readouterr().err
    assert "--corpus ('docs',) is not the earlier scan's" in told
    assert "measures the same corpus" in told
