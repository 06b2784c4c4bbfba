"""``demem.py scan`` on the lab: what it finds, what it does not, and what it leaves in its folder."""

import json
import os
import random
import shlex
import signal
from pathlib import Path

import pytest

import demem
import unlearning.scan
from data.records import lab_records
from data.study import load_study
from eval.scan.store import Store
from tests.eval.scan.corpora import lab, places_of, write_folder
from tests.killed import in_child
from tests.unlearning.scans import FEW, rows_of, scan, summary_of

FILES = ("scan.jsonl", "windows.jsonl", "summary.json", "scan.html")
SIDEWAYS = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


def check_found(out: Path, folder: Path, chosen: list) -> None:
    """Every memorised record is found wherever it stands, each ends where the record ends, and nothing else is."""
    findings = rows_of(out)
    left = {row["id"] for row in findings}
    places = places_of(folder, chosen)
    assert len({name for name, _ in places}) >= 3 + 2 * len(chosen)  # three whole files, and records by themselves
    groups = {record.id: record.group for record in chosen}
    for (name, record), (start, stop) in places.items():
        hits = [r for r in findings if r["document"] == name and r["start"] < stop and r["stop"] > start]
        left -= {row["id"] for row in hits}
        if groups[record] == "never":
            assert hits == [], (name, record)
            continue
        assert hits, (name, record)
        assert max(row["stop"] for row in hits) == stop, (name, record)
        assert all(start <= row["start"] and row["stop"] <= stop for row in hits), (name, record)
        assert sum(row["stop"] - row["start"] for row in hits) > 0.6 * (stop - start), (name, record)
        assert {row["status"] for row in hits} == {"memorised"}, (name, record)
    assert left == set()


def test_what_was_memorised_is_found_in_every_format_with_exact_ends_and_nothing_else(few):
    check_found(*few, FEW)
    summary = summary_of(few[0])
    assert summary["different"] == 6
    assert summary["verdict"]["state"] == "memorised"
    assert summary["controls"]["all"]["flagged"] == 0
    assert [row["name"] for row in rows_of(few[0], "skipped")] == ["picture.png"]


def test_a_finding_has_its_lines_and_its_text(few):
    out, folder = few
    lines = (folder / "below" / "wrapped.md").read_text(encoding="utf-16").split("\n")
    chosen = [row for row in rows_of(out) if row["path"] == "below/wrapped.md"]
    assert len(chosen) >= 6
    for row in chosen:
        first, last = row["lines"]
        assert "\n".join(lines[first - 1 : last]).find(row["text"]) >= 0
        assert row["text"].split("\n")[0] in lines[first - 1]
        assert row["text"].split("\n")[-1] in lines[last - 1]


def test_the_summary_and_the_windows_hold_no_word_of_the_corpus(few):
    out = few[0]
    words = {word for record in FEW for word in record.text.split() if len(word) > 8}
    for name in ("summary.json", "windows.jsonl"):
        text = (out / name).read_text(encoding="utf-8")
        assert [word for word in words if word in text] == []
    told = (out / "summary.json").read_text(encoding="utf-8")
    assert "wrapped.md" not in told
    assert str(few[1]) not in told


def test_the_terminal_holds_no_word_of_the_corpus(few, tmp_path, capsys):
    scan(tmp_path / "out", "--corpus", str(few[1] / "plain.txt"), "--controls", "0")
    told = "".join(capsys.readouterr())
    words = {word for record in FEW for word in record.text.split() if len(word) > 8}
    assert [word for word in words if word in told] == []
    assert "plain.txt:1  " in told
    assert "verdict: none, there were no controls" in told


def test_files_and_their_folder_are_private(few):
    assert few[0].stat().st_mode & 0o777 == 0o700
    for name in (*FILES, "config.json"):
        assert (few[0] / name).stat().st_mode & 0o777 == 0o600, name


def test_a_twin_that_was_trained_without_the_records_recites_nothing(few, tmp_path):
    forget = tmp_path / "forget.jsonl"
    assert scan(tmp_path / "out", "--corpus", str(few[1]), "--controls", "2", "--model", "lab:retain-only",
                "--fail-above", "0", "--write-forget-set", str(forget)) == 0  # fmt: skip
    assert rows_of(tmp_path / "out") == []
    assert summary_of(tmp_path / "out")["verdict"]["state"] == "nothing found"
    assert not forget.exists()


@pytest.mark.parametrize("moment", ["corpus", "controls", "end"])
def test_a_scan_that_is_killed_goes_on_to_the_same_bytes(few, tmp_path, moment):
    out, whole = tmp_path / "out", few[0]
    arguments = ["--corpus", str(few[1]), "--controls", "8"]

    def killed() -> None:
        write, count = Store._write, [0]

        def watched(store, path, digest):
            write(store, path, digest)
            count[0] += 1
            if path.parent.name == {"corpus": "passes"}.get(moment, moment):
                os.kill(os.getpid(), signal.SIGKILL)

        Store._write = watched
        if moment == "end":
            unlearning.scan.write_scan_page = lambda *a, **b: os.kill(os.getpid(), signal.SIGKILL)
        scan(out, *arguments)

    assert in_child(killed) == -signal.SIGKILL
    assert not (out / "scan.html").exists()
    assert scan(out, "--resume") == 0
    for name in ("scan.jsonl", "windows.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert summary_of(out) == summary_of(whole)


def test_more_than_allowed_is_status_1_and_only_personal_data_counts(few, tmp_path):
    plain = str(few[1] / "plain.txt")
    assert scan(tmp_path / "a", "--corpus", plain, "--controls", "2", "--fail-above", "5") == 1
    assert scan(tmp_path / "b", "--corpus", plain, "--controls", "2", "--fail-above", "6") == 0
    assert scan(tmp_path / "c", "--corpus", plain, "--controls", "2", "--only", "pii") == 0
    rows = rows_of(tmp_path / "c")
    assert {row["status"] for row in rows if row["personal"]} <= {"memorised"}
    assert {row["status"] for row in rows if not row["personal"]} <= {"other"}
    mails = [row["text"][m["start"] : m["end"]] for row in rows for m in row["personal"] if "mail" in m["kind"]]
    assert mails
    assert all("@" in mail for mail in mails)


def test_what_another_model_recites_too_is_no_memory(few, tmp_path):
    plain = str(few[1] / "plain.txt")
    scan(tmp_path / "out", "--corpus", plain, "--controls", "2", "--against-model", "lab:without-forget")
    records_of = places_of(few[1] / "plain.txt", FEW)
    for row in rows_of(tmp_path / "out"):
        record = next(r for (_, r), (a, b) in records_of.items() if a < row["stop"] and b > row["start"])
        held_out = record.startswith("forget_holdout")
        assert row["status"] == ("predictable" if held_out else "memorised")
        assert row["against"] == (["reference model"] if held_out else [])


def test_the_forget_set_is_taken_by_run_and_another_scan_says_what_is_left(few, tmp_path, capsys, browser):
    folder = few[1]
    forget = tmp_path / "forget.jsonl"
    plain = str(folder / "plain.txt")
    assert scan(tmp_path / "one", "--corpus", plain, plain, "--controls", "2", "--write-forget-set", str(forget)) == 0
    assert f"--data {forget}" in capsys.readouterr().out
    assert forget.stat().st_mode & 0o777 == 0o600
    study = load_study(str(forget), lab().tokenizer, 2048)
    rows = [json.loads(line) for line in forget.read_text(encoding="utf-8").splitlines()]
    assert {row["group"] for row in rows} == {"forget", "keep"}
    assert {row["kind"] for row in rows} == {"memorised", "neighbour"}
    never = " ".join(r.text for r in FEW if r.group == "never")
    for passage in study.group("keep"):
        assert lab().decode(passage.ids).strip()[:60] in never.replace("\n", " ")
    known = [r.text for r in FEW if r.group != "never"]
    whole = [lab().decode(p.ids) for p in study.group("forget")]
    assert all(any(text.strip()[10:] in record for record in known) for text in whole)
    assert {i for i, record in enumerate(known) if any(t.strip()[10:] in record for t in whole)} == set(range(6))

    after = tmp_path / "after"
    arguments = ["--against", str(tmp_path / "one"), "--model", "lab:without-forget", "--controls", "2"]
    assert demem.main(["scan", *arguments, "--out", str(after)]) == 0
    found = summary_of(after)["against_scan"]
    assert found["memories"] == {"left": 3, "part": 0, "gone": 3}
    assert found["new"] == 0
    assert found["rest"]["tokens"] > 300
    states = [json.loads(line) for line in (after / "against.jsonl").read_text().splitlines()]
    assert [row["id"] for row in states] == [row["id"] for row in rows_of(tmp_path / "one")]
    with browser.open(after / "scan.html") as page:
        assert page.run("return document.querySelectorAll('.strips svg').length") == 2
        states = page.run("return [...document.querySelectorAll('.passage')].map(c => c.dataset.state)")
        assert sorted(states) == ["gone"] * 3 + ["left"] * 3
        text = page.run("return document.getElementById('change').parentElement.textContent")
        assert "Of 6 texts that were memorised: 3 are gone, 0 are left in part, 3 are left; 0 are new." in text
        assert page.errors == []
    same = tmp_path / "same"
    assert demem.main(["scan", "--against", str(tmp_path / "one"), "--controls", "2", "--out", str(same)]) == 0
    found = summary_of(same)["against_scan"]
    assert found["memories"] == {"left": 6, "part": 0, "gone": 0}
    assert found["rest"]["perplexity"]["ratio"] == 1


def test_near_duplicates_are_forgotten_once(few, tmp_path):
    forget = tmp_path / "forget.jsonl"
    scan(tmp_path / "out", "--corpus", str(few[1]), "--controls", "2", "--write-forget-set", str(forget))
    rows = [json.loads(line) for line in forget.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"].split(".")[0] for row in rows if row["group"] == "forget"}) == 6
    assert {row["copies"] for row in rows_of(tmp_path / "out")} == {5}


def test_the_page_opens_without_errors_and_filters(few, browser):
    with browser.open(few[0] / "scan.html", width=390, is_phone=True) as page:
        assert page.errors == page.requests == []
        assert page.run(SIDEWAYS) == 0
    with browser.open(few[0] / "scan.html") as page:
        count = len(rows_of(few[0]))
        assert page.run("return document.getElementById('count').textContent") == f"{count} of {count} passages"
        page.run("const s = document.getElementById('group'); s.value = 'plain.txt';"
                 "s.dispatchEvent(new Event('change'))")  # fmt: skip
        assert page.run("return document.getElementById('count').textContent").startswith(f"6 of {count} passages")
        assert page.run("return document.querySelectorAll('.strips svg').length") == 5
        assert page.errors == []


@pytest.mark.slow
def test_all_records_of_the_lab_are_found_and_no_other(tmp_path):
    """128 memorised and 64 never-trained records, shuffled; recall and precision are 1, with exact ends."""
    chosen = [r for r in lab_records() if r.group != "keep"]
    random.Random(0).shuffle(chosen)
    write_folder(tmp_path / "corpus", chosen)
    assert scan(tmp_path / "out", "--corpus", str(tmp_path / "corpus")) == 0
    check_found(tmp_path / "out", tmp_path / "corpus", chosen)
    summary = summary_of(tmp_path / "out")
    assert summary["different"] == 128
    assert 32 <= summary["controls"]["all"]["texts"] <= 64
    assert summary["controls"]["all"]["flagged"] == 0
    assert scan(tmp_path / "twin", "--corpus", str(tmp_path / "corpus"), "--model", "lab:retain-only") == 0
    assert rows_of(tmp_path / "twin") == []


@pytest.mark.slow
def test_the_commands_of_the_page_find_forget_and_find_again(tmp_path, monkeypatch):
    """Those of docs/scan.md, on a few records, in a few steps: earlier findings are measured in the new model."""
    page = (Path(__file__).parents[2] / "docs" / "scan.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("python demem.py ")][:3]
    assert [command[0] for command in commands] == ["scan", "run", "scan"]
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "records", FEW)
    less = [["--controls", "4", "--text-field", "text"], ["--steps", "2", "--num-own", "8", "--siblings", "0"], []]
    for command, more in zip(commands, less, strict=True):
        assert demem.main([*command, *more]) in (0, 1), command
    found = summary_of(tmp_path / "runs" / "after")["against_scan"]
    count = summary_of(tmp_path / "runs" / "scan")["findings"]["memorised"]
    assert sum(found["memories"].values()) == count >= 6
    assert found["rest"]["perplexity"]["ratio"] > 0
