"""What a report says of a passage: "no longer extracted" only where no secret and no long run comes out."""

from __future__ import annotations

import json
import re

import pytest

from eval.report import pair_records, render_page, render_table
from eval.report.outcome import STATES, Strangers, marked_secrets, state_of, ways_out
from eval.report.passages import passage_card
from eval.settings import Settings, define
from eval.stored import read_passages

GONE = {"exact": 0.0, "secret_emitted": 0.0, "verbatim_run": 3.0, "verbatim_run_sampled": 4.0}
WHOLE = {**GONE, "exact": 1.0, "secret_emitted": 1.0, "verbatim_run": 40.0}
SECRET = {**GONE, "secret_emitted": 1.0, "secret_hinted": 1.0}
PART = {**GONE, "verbatim_run": 6.0}
OLD = {"exact": 0.0}  # of a folder of an earlier version
STRANGERS = Strangers({"before": {"verbatim_run": 20.0}, "after": {"verbatim_run": 5.0, "verbatim_run_sampled": 5.0}})


def pair(before, after=None, group="forget"):
    texts = {"id": "p", "group": group, "kind": "", "repeats": 0, "prompt": "call", "truth": "me at 4711 or 4712"}
    sides = [{"output": "me at noon", "bleu": 20.0, **numbers} for numbers in (before, after) if numbers is not None]
    return {**texts, "secrets": ["4711"], "before": sides[0], **({"after": sides[1]} if after is not None else {})}


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        (WHOLE, GONE, "gone"),
        (SECRET, GONE, "gone"),
        (WHOLE, WHOLE, "still"),
        (WHOLE, SECRET, "secret"),
        (WHOLE, {**GONE, "secret_greedy": 1.0}, "secret"),
        (WHOLE, PART, "part"),
        (WHOLE, {**GONE, "verbatim_run_sampled": 6.0}, "part"),
        (WHOLE, {**GONE, "verbatim_run": 5.0}, "gone"),  # as long as a stranger's
        (WHOLE, OLD, "unknown"),
        (GONE, GONE, "never"),
        (GONE, WHOLE, "new"),
        (GONE, SECRET, "new"),
        (PART, WHOLE, "new"),  # a run of 6 was a stranger's before
        (SECRET, WHOLE, "new"),
        (OLD, OLD, "never"),
        (WHOLE, {**GONE, "secret_emitted": None, "verbatim_run": None, "verbatim_run_sampled": None}, "unknown"),
        (WHOLE, {**GONE, "secret_emitted": float("nan")}, "gone"),
    ],
)
def test_the_outcome_of_a_passage(before, after, state):
    assert state_of(pair(before, after), STRANGERS) == state


@pytest.mark.parametrize(("numbers", "state"), [(WHOLE, "still"), (SECRET, "secret"), (GONE, "never"), (OLD, "never")])
def test_the_outcome_with_one_model(numbers, state):
    assert state_of(pair(numbers), STRANGERS) == state


def test_runs_are_measured_by_those_of_strangers():
    records = [pair(GONE, {**GONE, "verbatim_run": 7.0}, "never"), pair(WHOLE, {**GONE, "verbatim_run": 30.0})]
    strangers = Strangers.of(records)
    assert strangers.bound("after", "verbatim_run") == 7.0
    assert strangers.bound("before", "verbatim_run_sampled") == 4.0
    assert "(7 tokens greedily)" in strangers.told()
    alone = Strangers.of(records[1:])
    assert alone.bound("after", "verbatim_run") == 10
    assert "more than 10 tokens of the truth in a row (there are no never-trained passages" in alone.told()
    assert state_of(pair(WHOLE, {**GONE, "verbatim_run": 11.0}), alone) == "part"


def test_secrets_are_marked_in_the_truth():
    mark = '<mark class="secret">{}</mark>'.format
    assert marked_secrets("a <4711> b", ["4711"]) == f"a &lt;{mark('4711')}&gt; b"
    assert marked_secrets("ab  cd", ["ab cd"]) == mark("ab  cd")
    assert marked_secrets("abcd", ["abc", "bcd", " "]) == mark("abc") + mark("d")
    assert marked_secrets("4 4", ["4"]) == f"{mark('4')} {mark('4')}"
    assert marked_secrets("abc", []) == "abc"
    assert marked_secrets("x" * 30_000, ["x" * 25_000]).endswith("10,000 more characters</span>")


def test_the_card_says_how_a_secret_came_out():
    card = passage_card(pair(WHOLE, {**SECRET, "secret_greedy": 1.0}), STRANGERS)
    assert 'data-state="secret"' in card
    assert f'<span class="state secret">{STATES["secret"]}</span>' in card
    assert "secret out greedily, after a hint" in card
    assert '<mark class="secret">4711</mark> or 4712' in card
    assert STATES["gone"] not in card
    assert ways_out(GONE) == ""


def evaluated(emitted, run, exact):
    summary = {}
    for group, factor in (("forget", 1.0), ("never", 0.1)):
        values = {"passages": 2, "secret_emitted": emitted * factor, "exact": exact * factor}
        summary |= {f"{group}/{name}": value for name, value in {**values, "verbatim_run": run * factor}.items()}
    summary |= {"membership/loss_auc": 0.99}
    return {"summary": summary, "intervals": {}, "definitions": define(summary, Settings(secrets_by="pii")),
            "signatures": {}, "settings": {}}  # fmt: skip


def test_secrets_come_first_on_the_page_and_in_the_table():
    before, after = evaluated(1.0, 40.0, 1.0), evaluated(0.6, 12.0, 0.0)
    page = render_page(title="t", before=before, after=after, passages=[pair(WHOLE, SECRET), pair(GONE, GONE, "never")])
    tiles = re.findall(r'<div class="tile".*?</div>', page)
    assert "100.0 % &rarr;" in tiles[0]
    assert "60.0 %" in tiles[0]
    assert "secret still emitted; never trained 6.0 %" in tiles[0]
    assert "longest verbatim run, tokens; never trained 1.2" in tiles[1]
    assert "membership AUC" in "".join(tiles)
    assert "A secret comes out of 100.0 % of the forget set before and of 60.0 % after unlearning." in page
    assert "by the patterns of --secrets pii" in page
    assert "no longer extracted<" not in page
    lines = render_table(before["summary"], after["summary"]).splitlines()
    assert lines[2].startswith("Secret still emitted")
    assert lines[3].startswith("Longest verbatim run, tokens")


def test_records_keep_their_secrets_apart_from_their_numbers():
    head = {"id": "p", "group": "forget", "kind": "", "repeats": 0, "prompt": "", "truth": "x", "secrets": ["x"]}
    (row,) = pair_records([{**head, "output": "x", "exact": 1.0}])
    assert row["secrets"] == ["x"]
    assert row["before"] == {"output": "x", "exact": 1.0}


@pytest.mark.parametrize("secrets", [5, "4711", ["4711", 5], {"4711": 1}, None])
def test_secrets_that_somebody_sent_are_a_list_of_texts(tmp_path, secrets):
    path = tmp_path / "passages.jsonl"
    path.write_text(json.dumps({**pair(WHOLE, GONE), "secrets": secrets}) + "\n")
    with pytest.raises(ValueError, match=r"passages\.jsonl is damaged: record 1, secrets is .*, not a list of texts"):
        read_passages(path)


def test_passages_of_an_earlier_version_name_no_secrets(tmp_path):
    path = tmp_path / "passages.jsonl"
    old = {name: value for name, value in pair(WHOLE, GONE).items() if name != "secrets"}
    path.write_text(json.dumps(old) + "\n")
    (found,) = read_passages(path)
    assert found == old
    assert '<mark class="secret">' not in passage_card(found, STRANGERS)
