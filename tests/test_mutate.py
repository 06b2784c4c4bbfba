"""The table of mutants: what no test caught is named, even where it counts as caught."""

import json

from tests import mutate


def test_what_hung_or_broke_the_run_is_named(tmp_path):
    outcomes = {"a": "test_kl.py::test_k3", "b": "hung", "c": "broke the run", "d": "lived", "e": "test_kl.py::test_k2"}
    rows = [{"key": f"ppo/kl.py:{key}", "module": "ppo/kl.py", "outcome": "lived"} for key in "ea"]  # run again since
    rows += [{"key": f"ppo/kl.py:{key}", "module": "ppo/kl.py", "outcome": what} for key, what in outcomes.items()]
    (tmp_path / "mutants.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = mutate.write_table(tmp_path)
    assert summary == ("4 of 5 mutants caught (80.0 %), of which 1 hung and 1 broke the run before a test could fail")
    lines = (tmp_path / "mutants.md").read_text().splitlines()
    assert lines[0] == summary
    assert "| ppo/kl.py | 5 | 2 | 1 | 1 | 1 |" in lines
    for title, key in (("Hung:", "b"), ("Broke the run:", "c"), ("Lived:", "d")):
        assert lines[lines.index(title) + 1] == f"- `ppo/kl.py:{key}`"
