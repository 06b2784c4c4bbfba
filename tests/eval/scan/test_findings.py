"""What is found in readings: spans of several readings as one, prompts, the passes of folded texts, chances."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from eval.scan.findings import likeliest, look, probabilities, prompt_start
from eval.scan.forget import _cuts, _parts
from eval.scan.measure import metered
from eval.scan.passes import layout
from eval.scan.results import private_text
from eval.scan.store import Store
from eval.scan.sweep import passes_of, sweep
from tests.eval.scan.corpora import document, lab, of, records, subject


def found_in(tmp_path, *documents, **options):
    """What is found in documents by the lab's model, and the sweep."""
    who, shape = subject(), layout([50], 50, room=255, **options)
    with metered(who.model, bos=who.bos, length=shape.length) as meter:
        measured = sweep(of(*documents)(), shape, Store(tmp_path / "passes", meter), has_bos=True)
        return look(of(*documents)(), measured), measured


def test_a_text_that_two_readings_show_is_one_finding(tmp_path):
    one, other = records("forget", 2)
    text = f"{one.text}\n\nSome words  between.\n\n{other.text}"
    found, _ = found_in(tmp_path, document("a.txt", text))
    assert [f.stop for f in found.findings] == [len(one.text), len(text)]
    assert [f.lines for f in found.findings] == [(1, 1), (5, 5)]
    for finding in found.findings:
        assert finding.text == text[finding.start : finding.stop]
        assert text[: finding.start].endswith(finding.prompt)


@pytest.mark.parametrize("stride", [None, 40])
def test_overlapping_passes_find_the_same(tmp_path, stride):
    text = "\n\n".join(r.text for group in ("never", "forget") for r in records(group, 2))
    found, measured = found_in(tmp_path, document("a.txt", text), stride=stride)
    ends = [text.index(r.text) + len(r.text) for r in records("forget", 2)]
    assert [f.stop for f in found.findings] == ends
    assert measured.layout.layers == (1 if stride is None else 5)
    seen = found.documents[0]
    assert len(seen.heat) == min(240, len(text) // 20)
    assert set(seen.heat[: len(seen.heat) // 3]) <= set("01234")
    assert "9" in seen.heat


def test_folding_is_measured_where_it_changes_something_and_beside_it():
    words = " ".join(f"word{i}" for i in range(900))
    text = words[:3000] + "\n" + words[3001:]
    plain, folded = of(document("a", text))()
    shape = layout([50], 50, room=255)
    every = shape.passes(len(folded.ids), has_bos=True)
    chosen = passes_of(folded, shape, has_bos=True)
    at = int(np.searchsorted(folded.ends, 3000, side="right"))
    inside = [i for i, p in enumerate(every) if p.start <= at < p.stop]
    assert chosen == every[max(0, inside[0] - 1) : inside[-1] + 2]
    assert 0 < len(chosen) < len(every)
    assert len(passes_of(plain, shape, has_bos=True)) == len(shape.passes(len(plain.ids), has_bos=True))


def test_a_prompt_ends_where_the_model_sees_the_text_before_end():
    layer = SimpleNamespace(ends=np.array([0, 0, 1, 0, 0, 0], dtype=bool))
    assert prompt_start(5, layer, 2) == 3
    assert prompt_start(5, layer, 4) == 2
    assert prompt_start(2, layer, 4) == 2
    assert prompt_start(1, layer, 4) == 0


def test_the_likeliest_window_is_the_best_of_all():
    values = np.random.default_rng(0).normal(-2, 1, 40).astype(np.float32)
    values[[7, 8, 30]] = -np.inf
    values[0] = np.nan
    sums = [np.float64(values[i : i + 6]).sum() for i in range(35)]
    assert likeliest(values, 6) == pytest.approx(max(s for s in sums if np.isfinite(s)))
    assert likeliest(values[6:10], 3) == -math.inf
    assert likeliest(values[1:4], 9) == pytest.approx(float(np.float64(values[1:4]).sum()))
    assert probabilities(math.log(0.5), -math.inf) == {
        "log_pz": math.log(0.5), "log_pz_top_k": None, "samples": 1.0, "samples_top_k": None,
    }  # fmt: skip


def test_the_passages_of_a_long_text_cover_it_and_overlap_by_a_prefix():
    assert list(_cuts(12, prefix=2, suffix=3)) == [(0, 7), (5, 12)]
    for size in range(2, 60):
        cuts = list(_cuts(size, prefix=5, suffix=8))
        assert cuts[0][0] == 0
        assert cuts[-1][1] == size
        assert all(b - a <= 18 for a, b in cuts)
        assert all(after[0] <= before[1] - min(5, before[1]) for before, after in itertools.pairwise(cuts))
        for a, b in cuts:
            parts = _parts(list(range(a, b)), prefix=5, suffix=8)
            assert [i for part in parts for i in part] == list(range(a, b))
            assert parts[1]
            assert parts[2]


def test_a_private_file_has_its_name_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "a.txt"

    def broken():
        with private_text(path) as file:
            file.write("half")
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert list(tmp_path.iterdir()) == []
    path.symlink_to(tmp_path / "elsewhere")
    with private_text(path) as file:
        file.write("whole")
    assert not (tmp_path / "elsewhere").exists()
    assert path.read_text() == "whole"
    assert path.stat().st_mode & 0o777 == 0o600
    assert lab().spec == "lab"
