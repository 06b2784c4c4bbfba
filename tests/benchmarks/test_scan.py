"""The benchmark of a scan: it runs, and both sides count the tokens that they were given."""

import argparse

import pytest
import torch

from benchmarks import scan
from models.load import load


def test_both_sides_have_a_rate_of_all_their_tokens(monkeypatch):
    asked = []

    def timed(work):
        asked.append(work.__name__)
        work()
        return 2.0 if work.__name__ == "scan" else 1.0

    monkeypatch.setattr(scan, "timed", timed)
    options = argparse.Namespace(passes=2, batch_tokens=512, repeats=2)
    loaded = load("lab")
    found = scan.measure(loaded, options)
    assert asked == ["bare", "scan"] * 3
    assert found["bare"] == 2 * found["scan"]
    length = scan.layout([scan.PREFIX], scan.SUFFIX, room=scan.context_length(loaded.model) - 1).length
    assert found["bare"] == 2 * length


def test_it_says_both_rates_and_writes_them(monkeypatch, tmp_path, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["scan", "--passes", "1", "--repeats", "1", "--json", str(tmp_path / "a.json")])
    scan.main()
    assert torch.get_num_threads() == threads
    told = capsys.readouterr().out
    assert "tokens/s bare" in told
    assert f"at least {scan.LIMIT}" in told
    assert '"scan"' in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize("passes", [1, 3])
def test_the_number_of_passes_is_that_of_the_option(monkeypatch, passes):
    monkeypatch.setattr(scan, "timed", lambda work: work() or 1.0)
    options = argparse.Namespace(passes=passes, batch_tokens=4096, repeats=1)
    assert scan.measure(load("lab"), options)["bare"] % passes == 0
