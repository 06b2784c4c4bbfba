"""The trials of ``python -m tests.trust``: a few of each, and that it would tell."""

from __future__ import annotations

import json

import pytest

from tests import trust


@pytest.mark.slow
def test_a_few_trials_lose_nothing(tmp_path, capsys):
    assert trust.main(["--scale", "0.02", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 8
    assert all(one["tried"] > 0 == one["lost"] for one in found)
    assert "0 lost" in capsys.readouterr().out.splitlines()[-1]


def test_what_is_lost_is_told(monkeypatch, capsys):
    trials = [{"kill": ["write", 3], "resumed": 0, "differs": ["end"]}, {"kill": 1.5, "resumed": 0, "differs": []}]
    monkeypatch.setattr(trust, "_run", lambda command: (0, json.dumps({"trials": trials}), 2.0))
    found = trust.kills("tiny", 2)
    assert (found.tried, found.lost) == (2, 1)
    assert '"write", 3' in found.details[0]
    printed = "json: {'refused': 20, 'taken': 3} in 1 s\ncsv, seed 7: Trace\ncsv: {'failed': 1, 'taken': 9} in 2 s\n"
    monkeypatch.setattr(trust, "_run", lambda command: (1, printed, 3.0))
    found = trust.files(30)
    assert (found.tried, found.lost, found.details) == (33, 1, ["csv, seed 7: Trace"])
    monkeypatch.setattr(trust, "plan", lambda scale: [lambda: found])
    assert trust.main([]) == 1
    assert "33 tried    1 lost" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(trust, "_run", lambda command: (1, "the unbroken run failed", 1.0))
    assert trust.disks(3).lost == 1
