"""The pictures of made-up points: what is drawn, and what is left out."""

from __future__ import annotations

import json

import pytest

from benchmarks.plots import draw as plots
from benchmarks.plots.depth import depth_figure
from benchmarks.plots.drawing import INK
from benchmarks.study.points import ORIGINAL
from benchmarks.study.rows import make_rows
from benchmarks.study.variants import VARIANTS
from tests.benchmarks.test_lab_study import made_up, three
from tests.eval.test_pareto import original, point

pytest.importorskip("matplotlib", reason="needs the extra `plots`: pip install matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg


def test_a_range_and_a_mean_for_every_variant():
    points = [
        made_up(ORIGINAL),
        *three("base", "keep__exact", [0.9, 0.8, 0.7]),
        *three("hot", "keep__exact", [1.0, 1.0, 1.0]),
    ]
    figure = plots.ingredients_figure(make_rows(points))
    assert figure is not None
    keep = figure.axes[2]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["DeMem's recipe", "rollouts at 1.3"]
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


def marks(axis) -> list[tuple[float, str]]:
    """The places of a panel's dots, from top to bottom, and their fill colours."""
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    return [(round(float(line.get_xdata()[0]), 6), line.get_markerfacecolor()) for line in dots]


def test_a_line_a_method_and_the_collapsed_are_hollow():
    points = [original(), point(seed=0), point(seed=1, keep__exact=0.5), point("npo", forget__empty=0.9)]
    figure = plots.methods_figure(points)
    assert figure is not None
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["before", "DeMem", "NPO, n = 1"]
    assert [t.get_fontweight() for t in figure.axes[0].get_yticklabels()] == ["normal", "bold", "normal"]
    assert "up to 2 seeds" in figure.get_suptitle()
    assert "hollow: collapsed" in figure.get_suptitle()
    fills = [fill for _, fill in marks(figure.axes[0])]
    assert fills == [INK, INK, "#ffffff"]
    assert marks(figure.axes[0])[1][0] == 0.3  # (n, p) is the worst of the three
    keep = points[1]["summary"]["keep/exact"]
    assert marks(figure.axes[2])[1][0] == pytest.approx((keep + 0.5) / 2)
    assert not [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]  # no target was measured
    figure = plots.methods_figure([*points, point("without-forget", forget__true_token_p=0.1)])
    assert figure is not None
    (dashed,) = [line for line in figure.axes[4].lines if line.get_linestyle() == "--"]
    assert list(dashed.get_xdata()) == [0.1, 0.1]
    assert plots.methods_figure([]) is None


def test_relearning_goes_from_before_to_after():
    def relearned(*values):
        return [{"name": f"relearning steps:{n}|{part}", "groups": {"forget": {"bleu": value}}}
                for n, value in zip((0, 5, 20), values, strict=True) for part in ("taught", "not taught")]  # fmt: skip

    points = [{**original(), "attacks": relearned(90.0, 91.0, 92.0)}, {**point(), "attacks": relearned(4.0, 9.0, 25.0)}]
    points.append({**point(seed=1), "attacks": relearned(6.0, 9.0, 27.0)})
    points.append({**point("ul", forget__empty=0.9), "attacks": relearned(1.0, 9.0, 50.0)})
    for row in points:
        row["summary"] = {**row["summary"], "forget/n_bleu": 5.0, "never/n_bleu": 80.0, "never/exact": 0.02}
    figure = plots.real_figure(points)
    assert figure is not None
    panel = figure.axes[-1]
    assert marks(panel) == [(92.0, INK), (26.0, INK), (50.0, "#ffffff")]  # the means, and the collapsed is hollow
    began = [float(line.get_xdata()[0]) for line in panel.lines if line.get_marker() == "|"]
    assert began == [90.0, 5.0, 1.0]
    assert [90.0, 91.0, 92.0] in [list(map(float, line.get_xdata())) for line in panel.lines]
    assert "relearning: from 0 (bar) to 20 steps (dot)" in figure.get_suptitle()
    (chance,) = [line for line in figure.axes[1].lines if line.get_linestyle() == "--"]
    assert list(chance.get_xdata()) == [80.0, 80.0]
    (chance,) = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert list(chance.get_xdata()) == [6.0, 6.0]
    assert plots.real_figure([original()]) is None


def texts(figure) -> list:
    """Every text that a figure shows. The label of a tick outside the limits is not drawn."""
    found = [figure._suptitle, *(axis.title for axis in figure.axes)]
    for axis in figure.axes:
        low, high = axis.get_xlim()
        ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
        found += [label for place, label in ticks if low <= place <= high] + axis.get_yticklabels()
    return [text for text in found if text.get_text()]


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_text_overlaps_another_or_is_cut_off(seeds):
    """The pictures with every method on a real model, and with every variant."""
    methods = [m for m in plots.NAMES if m != ORIGINAL]
    real = [original(), *(point(m, seed=seed) for m in methods for seed in range(seeds if m != "paper" else 1))]
    for row in real:
        row["attacks"] = [{"name": f"relearning steps:{n}|not taught", "groups": {"forget": {"bleu": 9.0 * n}}}
                          for n in (0, 10)]  # fmt: skip
        row["summary"] = {**row["summary"], "forget/n_bleu": 5.0, "never/n_bleu": 80.0, "never/exact": 0.02}
    real[3]["summary"] = {**real[3]["summary"], "forget/empty": 0.9, "holdout/perplexity": 130.0}
    study = [made_up(ORIGINAL), *(made_up(v, seed) for v in VARIANTS for seed in range(1 if v == "hot" else seeds))]
    figures = [plots.real_figure(real), plots.methods_figure(real), plots.ingredients_figure(make_rows(study))]
    for figure in figures:
        assert figure is not None
        FigureCanvasAgg(figure).draw()
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
        for i, (text, box) in enumerate(boxes):
            assert box.x0 >= 0, text
            assert box.x1 <= figure.bbox.width, text
            for other, its in boxes[:i]:
                assert not box.overlaps(its), (text, other)


def test_every_variant_has_a_short_name():
    assert set(plots.SHORT) == set(VARIANTS)
    assert all(len(name) <= 30 for name in plots.SHORT.values())


def test_the_program_draws_what_it_has(tmp_path, capsys):
    folder = tmp_path / "compare" / "points"
    folder.mkdir(parents=True)
    for i, row in enumerate([original(), point(seed=0), point(seed=1, keep__exact=0.8)]):
        (folder / f"{i}.json").write_text(json.dumps(row))
    none = ["--real", str(tmp_path / "none"), "--equal", str(tmp_path / "none")]
    wanted = [*none, "--study", str(tmp_path / "none"), "--compare", str(folder.parent), "--out", str(tmp_path / "out")]
    assert plots.main(wanted) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["methods.png"]
    assert (tmp_path / "out" / "methods.png").read_bytes()[:4] == b"\x89PNG"
    assert "size: " in capsys.readouterr().out


def test_the_picture_of_depth_has_a_line_for_each_stored_curve():
    def along(method, seed, forget, never=()):
        curves = {"forget/right": list(forget)} | ({"never/right": list(never)} if never else {})
        return (original() if method == "original" else point(method, seed=seed)) | {"by_place": curves}

    points = [
        along("original", 0, [1.0, 1.0, 0.9], [0.1, 0.2, 0.3]),
        along("deep", 0, [0.1, 0.3, 0.2]), along("deep", 1, [0.3, 0.5]),  # the mean goes as far as both do
        along("without-forget", 0, [0.2, 0.1, 0.4]), point(seed=0),
    ]  # fmt: skip
    figure = depth_figure(points)
    assert figure is not None
    (axis,) = figure.axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert drawn == {
        "before": ([1, 2, 3], [1.0, 1.0, 0.9]),
        "DeMem, deep": ([1, 2], pytest.approx([0.2, 0.4])),
        "never-trained passages": ([1, 2, 3], [0.1, 0.2, 0.3]),
        "the exact twin": ([1, 2, 3], [0.2, 0.1, 0.4]),
    }
    assert "2 seeds at most" in figure.get_suptitle()
    assert axis.get_xlabel()
    assert axis.get_ylabel()
    assert depth_figure(points[:1]) is not None  # before and never
    assert depth_figure([point(seed=0)]) is None
