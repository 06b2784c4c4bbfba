"""The pictures: what is drawn in them, from made-up points, and what is left out."""

from __future__ import annotations

import json

import pytest

from benchmarks import plots
from benchmarks.study_points import ORIGINAL
from benchmarks.study_rows import make_rows
from eval.pareto import means
from tests.test_lab_study import made_up, three
from tests.test_pareto import original, point

pytest.importorskip("matplotlib", reason="needs the extra `plots`: pip install matplotlib")


def test_a_range_and_a_mean_for_every_variant():
    points = [
        made_up(ORIGINAL),
        *three("base", "keep__exact", [0.9, 0.8, 0.7]),
        *three("hot", "keep__exact", [1.0, 1.0, 1.0]),
    ]
    figure = plots.ingredients_figure(make_rows(points))
    assert figure is not None
    keep = figure.axes[2]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["base", "hot"]
    lines = {tuple(map(float, line.get_xdata())) for line in keep.lines}
    assert (0.7, 0.9) in lines
    assert (1.0, 1.0) in lines
    assert pytest.approx((0.8,)) in [tuple(map(float, line.get_xdata())) for line in keep.lines]
    assert plots.ingredients_figure(make_rows(points[:4])) is None  # one variant shows nothing


def test_lines_over_the_sizes():
    points = [made_up(v, s, n) for n in (16, 64) for v, s in ((ORIGINAL, 0), ("base", 0), ("base", 1), ("distil", 0))]
    figure = plots.size_figure(make_rows(points))
    assert figure is not None
    assert [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")] == [
        "DeMem", "distillation",
    ]  # fmt: skip
    assert list(figure.axes[0].lines[0].get_xdata()) == [16, 64]
    assert plots.size_figure(make_rows(points[:4])) is None


def test_the_collapsed_are_crossed_in_the_scatter():
    points = [original(), point(), point("ul", forget__empty=0.9)]
    figure = plots.pareto_figure(means(points))
    assert figure is not None
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1
    assert list(crosses[0].get_xdata()) == [pytest.approx(0.3)]  # (n, p) is the worst of the three
    spots = [float(x) for line in figure.axes[2].lines for x in line.get_xdata()]
    assert any(x == pytest.approx(0.1) for x in spots)  # 0.6 against 0.5 by chance
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["original", "demem", "ul"]
    assert plots.pareto_figure([]) is None


def test_relearning_is_a_line_a_method():
    def relearned(*shares):
        return [{"name": f"relearning steps:{n}|{part}", "groups": {"forget": {"exact": share}}}
                for n, share in zip((0, 5, 20), shares, strict=True) for part in ("taught", "not taught")]  # fmt: skip

    points = [{**original(), "attacks": relearned(1.0, 1.0, 1.0)}, {**point(), "attacks": relearned(0.0, 0.25, 0.5)}]
    figure = plots.real_figure(means(points))
    assert figure is not None
    assert [list(line.get_ydata()) for line in figure.axes[2].lines] == [[1.0, 1.0, 1.0], [0.0, 0.25, 0.5]]
    assert list(figure.axes[2].lines[0].get_xdata()) == [0, 5, 20]
    assert plots.real_figure(means([original()])) is None


def test_the_program_draws_what_it_has(tmp_path, capsys):
    folder = tmp_path / "compare" / "points"
    folder.mkdir(parents=True)
    for i, row in enumerate([original(), point(seed=0), point(seed=1, keep__exact=0.8)]):
        (folder / f"{i}.json").write_text(json.dumps(row))
    none = ["--real", str(tmp_path / "none")]
    wanted = [*none, "--study", str(tmp_path / "none"), "--compare", str(folder.parent), "--out", str(tmp_path / "out")]
    assert plots.main(wanted) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["pareto.png"]
    assert (tmp_path / "out" / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert "size: " in capsys.readouterr().out
