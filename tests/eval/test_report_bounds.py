"""A page over very many or very long texts, names and steps: it stays small, is made soon, and says what it cut."""

from __future__ import annotations

import json
import re
import time
from difflib import SequenceMatcher

import pytest

import demem
from eval.report import bounds, pair_records, render_page, render_passage, render_table
from eval.report.bounds import cut, spread
from eval.report.diff import Effort, matching_pieces
from eval.report.folder import _samples
from eval.report.passages import passage_section
from eval.report.terms import Terms
from ppo import Config
from tests.eval.test_report import evaluated, read, records

BEFORE, AFTER = evaluated(0.95, 90.0, 12.0), evaluated(0.04, 38.0, 12.24)
NO_TERMS = Terms({})


def passage(**texts: str) -> dict:
    one = {"id": "p", "group": "forget", "kind": "", "repeats": 0, "prompt": "a", "truth": "b"} | texts
    sides = {side: {"output": texts.get(side, "c"), "exact": 0.0, "bleu": 1.0} for side in ("before", "after")}
    return one | sides


def test_a_cut_says_how_much_is_left_out() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcdef" * 200_000, 5) == "abcde… 1,199,995 more characters"
    assert [*spread(range(10), 4)] == [0, 3, 6, 9]
    assert [*spread([1, 2], 4)] == [1, 2]


@pytest.mark.parametrize("sign", ["a ", "<&", "\x1b", "\u202e", "字"])
def test_sides_of_many_megabytes(sign: str) -> None:
    huge = sign * 2_000_000
    started = time.perf_counter()
    text = passage_section([passage(prompt=huge + "END", truth=huge, before=huge, after="x" + huge)], NO_TERMS, most=9)
    assert time.perf_counter() - started < 10
    assert len(text) < 9_000_000
    left_out = len(huge) - bounds.MOST_CHARACTERS
    assert f"{left_out + 3:,} characters before …" in text
    assert text.count(f"… {left_out:,} more characters") == 2  # the truth, and the output before
    assert f"… {left_out + 1:,} more characters" in text
    assert re.search(r"END</div>", text)  # of a prompt the end is shown
    read(text)


def test_a_text_at_the_bound_is_whole() -> None:
    whole = "word " * (bounds.MOST_CHARACTERS // 5)
    text = passage_section([passage(prompt=whole, truth=whole, before=whole, after=whole)], NO_TERMS, most=9)
    assert "characters" not in text
    assert text.count("word ") == 4 * whole.count("word")


def test_very_many_passages() -> None:
    many = [passage(id=f"p{i}", group=f"g{i}") for i in range(100_000)]
    started = time.perf_counter()
    text = passage_section(many, NO_TERMS, most=bounds.MOST_PASSAGES)
    assert time.perf_counter() - started < 10
    assert text.count("<article") == bounds.MOST_PASSAGES
    assert "Shown: the first 2000 of 100000." in text
    assert text.count("<option") < bounds.MOST_GROUPS + 20
    long = [passage(before="\u202e" * 20_000, after="\u202e" * 20_000)] * 100  # 60 signs of HTML for each
    text = passage_section(long, NO_TERMS, most=bounds.MOST_PASSAGES)
    count = text.count("<article")
    assert 0 < count < 100
    assert len(text) < bounds.MOST_CARD_SIGNS + 10_000
    assert f"Shown: the first {count} of 100." in text
    assert f"{count} passages</p>" in text


def test_names_of_many_megabytes() -> None:
    huge = "n" * 5_000_000
    text = passage_section([passage(id=huge, group=huge, kind=huge)], NO_TERMS, most=9)
    assert len(text) < 10_000
    assert text.count("more characters") >= 3


def test_very_many_groups_names_and_steps() -> None:
    summary = {"holdout/perplexity": 2.0}
    for i in range(5000):
        summary |= {f"g{i:05}/passages": 1, f"g{i:05}/exact": 0.5, f"g00000/exact_after_{i}": 0.5}
    definitions = {f"x{i}/y": "d" * 10_000 for i in range(2000)} | {"n" * 10**6: "d"}
    one = evaluated(0.9, 90.0, 2.0) | {"summary": summary, "definitions": definitions, "intervals": {}}
    metrics = [{"step": i, "score/mean": float(i)} for i in range(50_000)]
    config = {f"field{i}": "v" * 10_000 for i in range(2000)}
    started = time.perf_counter()
    text = render_page(title="t", before=one, after=one, metrics=metrics, config=config, meta={"command": "c" * 10**7})
    assert time.perf_counter() - started < 20
    assert len(text) < 5_000_000
    assert "5000 groups. The first 40 groups are shown." in text
    assert text.count("<circle") == bounds.MOST_POINTS
    assert "500 steps are drawn, evenly spread" in text
    assert "step 49999" in text
    assert "1,500 more</dd>" in text
    read(text)
    table = render_table(summary)
    assert table.splitlines()[-1] == "Shown: the first 40 of 5000 groups."
    assert len(table) < 100_000


def test_a_passage_in_the_terminal_is_cut_too() -> None:
    text = render_passage(passage(id="i" * 10**6, prompt="p" * 10**6, truth="t" * 10**6, before="b" * 10**6))
    assert len(text) < 5000
    assert text.count("999,000 more characters") == 2


def test_marks_are_those_of_difflib_as_long_as_the_effort_lasts() -> None:
    truth = "the cat sat on the mat, and the dog on the cat"
    for output in ("on the mat the cat sat, and on the dog", "a cat on the dog and the mat and the cat", ""):
        pieces = re.findall(r"\s+|\w+|[^\w\s]", output), re.findall(r"\s+|\w+|[^\w\s]", truth)
        blocks = SequenceMatcher(None, *pieces, autojunk=False).get_matching_blocks()
        expected = "".join("".join(pieces[0][i : i + n]).strip() for i, _, n in blocks if n)
        found = "".join(text for text, is_match in matching_pieces(output, truth) if is_match)
        assert found.replace(" ", "") == expected.replace(" ", "")
    effort = Effort(30)
    assert matching_pieces("the cat", "the cat", effort) == [("the cat", True)]
    left = effort.left
    assert 0 < left < 30
    assert matching_pieces("the cat the cat the cat", "the cat the cat the cat", effort) == [
        ("the cat the cat the cat", False)
    ]
    assert (effort.left, effort.num_unfinished) == (left, 1)


def test_the_time_of_marking_is_bounded() -> None:
    """Words that match one by one take a search each: cubic time. A page has a bound for all its texts."""
    output = " ".join(f"a{i} s" for i in range(3000))
    truth = " ".join(f"b{i} s" for i in range(3000))
    effort, started = Effort(), time.perf_counter()
    for _ in range(200):
        pieces = matching_pieces(output, truth, effort)
    assert time.perf_counter() - started < 60
    assert "".join(text for text, _ in pieces) == output
    assert effort.num_unfinished == 200
    text = passage_section([passage(truth=truth, before=output)], NO_TERMS, most=9)
    assert "Long outputs whose words are not marked to the end: 1." in text


def test_the_command_report_over_a_folder_of_huge_passages(tmp_path, capsys) -> None:
    rows = pair_records(records(["x", "y"], [1.0, 0.0]), records(["x", "y"], [0.0, 0.0]))
    rows[0]["truth"] = rows[0]["before"]["output"] = "a b " * 1_000_000
    with (tmp_path / "passages.jsonl").open("w") as file:
        for row in [*rows, *([rows[1]] * 100_000)]:
            file.write(json.dumps(row) + "\n")
    (tmp_path / "evaluation.json").write_text(json.dumps({"meta": {}, "summary": {}, "before": BEFORE, "after": AFTER}))
    (tmp_path / "config.json").write_text(json.dumps({"options": {}, "config": Config().to_dict()}))
    started = time.perf_counter()
    assert demem.main(["report", "--out", str(tmp_path)]) == 0
    assert time.perf_counter() - started < 60
    assert (tmp_path / "report.html").stat().st_size < 10_000_000
    assert len(capsys.readouterr().out) < 20_000


def test_samples_of_the_live_page() -> None:
    huge = {"step": 3, "prompt": "p" * 10**6, "response": "r" * 10**6, "score": 0.5}
    text = _samples([{"step": 2, "prompt": "old", "response": "old", "score": 1.0}, *[huge] * 500, {"step": 4}, {}])
    assert text.count("<article") == bounds.MOST_SAMPLES
    assert len(text) < 5_000_000
    assert "old" not in text
    assert text.count("980,000 more characters") == bounds.MOST_SAMPLES
    assert _samples([{}]) == ""
