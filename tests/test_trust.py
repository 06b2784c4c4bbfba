"""The trials of ``python -m tests.trust``: a few of each, and that it would tell."""

from __future__ import annotations

import json

import pytest

from tests import trust


@pytest.mark.slow
def test_a_few_trials_lose_nothing(tmp_path, capsys):
    assert trust.main(["--scale", "0.02", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 9
    assert all(one["tried"] > 0 == one["lost"] for one in found)
    assert "0 lost" in capsys.readouterr().out.splitlines()[-1]


def test_what_is_lost_is_told(monkeypatch, capsys):
    good = {"kill": 1.5, "status": -9, "resumed": 0, "differs": []}
    trials = [{"kill": ["write", 3], "status": -9, "resumed": 0, "differs": ["end"]}, good, good | {"status": 0}]
    monkeypatch.setattr(trust, "_run", lambda command: (0, json.dumps({"trials": trials}), 2.0))
    found = trust.kills("tiny", 2)
    assert (found.tried, found.lost) == (2, 1)
    assert '"write", 3' in found.details[0]  # the third kill came after the end, and counts for nothing
    monkeypatch.setattr(trust, "_run", lambda command: (1, 'trace\n{"of": 9}', 2.0))
    assert trust.resealed(2).lost == 1
    monkeypatch.setattr(trust, "_run", lambda command: (1, '{"of": 9, "tried": 4, "lost": 2, "trials": ["x"]}', 2.0))
    assert trust.resealed(4) == trust.Finding(
        "re-sealed checkpoints", 4, 2, 2.0, "python -m tests.resealed --inputs 4", ["x"]
    )
    good, bad = "json: {'refused': 20, 'taken': 3} in 1 s\n", "csv: {'failed': 1, 'taken': 9} in 2 s\n"
    printed = f"{good}csv, seed 7: Trace\n  File\nKeyError: 3\n{bad}"
    monkeypatch.setattr(trust, "_run", lambda command: (1, printed, 3.0))
    found = trust.files(30)
    assert (found.tried, found.lost, found.details) == (33, 1, ["csv, seed 7: Trace", "KeyError: 3"])
    monkeypatch.setattr(trust, "plan", lambda scale: [lambda: found])
    assert trust.main([]) == 1
    assert "33 tried    1 lost" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(trust, "_run", lambda command: (1, "the unbroken run failed", 1.0))
    assert trust.disks(3).lost == 1


def test_the_plan_is_as_large_as_the_page_says(monkeypatch):
    """Of each kind at least so many; what a program makes of its options is counted by its own tests."""
    kinds = {"kills": 300, "disks": 50, "pairs": 50, "files": 100_000 // 18, "resealed": 500}
    planned = dict.fromkeys(kinds, 0)
    for trial in trust.plan(1):
        planned[trial.func.__name__] += trial.args[-1]
    assert all(planned[kind] >= least for kind, least in kinds.items())
    asked = []
    monkeypatch.setattr(trust, "_run", lambda command: asked.append(command) or (1, "", 0.0))
    for case, count in trust.KILLED_CASES.items():
        trust.kills(case, count)
        options = asked[-1][4:]
        assert options[0::2] == ["--events", "--times"]
        assert 4 * int(options[1]) + int(options[3]) == count
