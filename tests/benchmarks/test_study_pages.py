"""The sentences on the pages of the lab study, worked out by hand from made-up points."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.points import NUM_SEEDS, ORIGINAL, Settings, read_points
from benchmarks.study.rows import as_good_as_both, better_and_worse, make_rows
from benchmarks.study.tables import caps, ingredients_page, repeats_page, shapes_page, size_page, write_pages
from benchmarks.study.variants import BOTH
from tests.benchmarks.test_lab_study import made_up, three

STUDY = Path(__file__).resolve().parents[2] / "results" / "study"


def with_steps(point: dict, **steps) -> dict:
    return {**point, "steps": steps}


def test_better_and_worse_need_all_seeds_on_one_side():
    points = [
        made_up(ORIGINAL),
        *three("base", "keep__exact", [0.9, 0.8, 0.85]),
        *three("hot", "keep__exact", [0.95, 1, 0.91]),
    ]
    points += [
        *three("cool", "keep__exact", [0.95, 1.0, 0.9]),
        *three("no-own", "forget_holdout__exact", [0.2, 0.3, 0.4]),
    ]
    rows = {r.variant: r for r in make_rows(points)}
    assert better_and_worse(rows["hot"], rows["base"]) == (["keep/exact"], [])
    assert better_and_worse(rows["cool"], rows["base"]) == ([], [])  # 0.9 is one of base's
    assert better_and_worse(rows["no-own"], rows["base"])[1] == ["forget_holdout/exact"]
    page = ingredients_page(list(rows.values()))
    assert page is not None
    assert "- `hot`: better: keep survives" in page
    assert "- `cool`: no quantity in which all its seeds differ" in page
    assert "85.0 % [80.0, 90.0]" in page
    fewer = ingredients_page(make_rows([p for p in points if p["asked"]["seed"] < 2]))
    assert fewer is not None
    assert "Against DeMem's recipe" not in fewer  # two seeds say too little
    assert make_rows(points[1:]) == []  # nothing to hold them against


def test_the_warm_start_is_held_against_the_better_one_of_both():
    points = [made_up(ORIGINAL), made_up("base", keep__exact=0.9, holdout__perplexity=70.0)]
    points += [made_up("distil", keep__exact=0.98, holdout__perplexity=69.0)]
    points += [made_up("warm", keep__exact=0.98, holdout__perplexity=69.5)]
    rows = {r.variant: r for r in make_rows(points)}
    good, short = as_good_as_both(rows["warm"], [rows["base"], rows["distil"]])
    assert "keep/exact" in good
    assert short == ["perplexity_ratio"]
    page = ingredients_page(list(rows.values()))
    assert page is not None
    assert "`warm`, means over 1 seed: as good as the better one of `base` and `distil` in 1 of 2 quantities" in page
    assert "short of it in perplexity ratio" in page


def test_pages_of_sizes_repeats_and_shapes():
    points = [made_up(v, 0, s) for s in (16, 64, 128) for v in (ORIGINAL, *BOTH)]
    assert repeats_page(make_rows(points)) is None
    assert size_page(make_rows(points[:3])) is None
    page = size_page(make_rows(points))
    assert page is not None
    assert "| `base` | 128 | 0 | 1 |" in page
    assert "| `distil` | 16 | 112 | 1 |" in page
    shapes = shapes_page(make_rows(points))
    assert shapes is not None
    assert "| variant | seeds | forget: letter | forget_holdout: letter |" in shapes
    assert "| `base` | 1 | 0.0 % | 10.0 % |" in shapes
    graded = [made_up(v, lab="graded") for v in (ORIGINAL, *BOTH)]
    repeats = repeats_page(make_rows(points + graded))
    assert repeats is not None
    rows = [line for line in repeats.splitlines() if line.startswith("| forget ")]
    assert [row.split("|")[2].strip() for row in rows] == [
        "25",
        "25",
        "25",
        "100",
        "100",
        "100",
    ]  # by size, not by sign


def test_named_differences_are_told_beside_what_chance_would_name():
    points = [made_up(ORIGINAL)]
    points += three("base", "keep__exact", [0.9, 0.8, 0.85]) + three("hot", "keep__exact", [0.95, 1.0, 0.91])
    page = ingredients_page(make_rows(points))
    assert NUM_SEEDS == 3
    assert page is not None
    assert "would name up to 1 of the 11 x 1 = 11 quantities here" in page
    assert "It names 1. One of them" in page
    points += three("cool", "keep__exact", [0.95, 1.0, 0.91])
    page = ingredients_page(make_rows(points))
    assert page is not None
    assert "would name up to 2 of the 11 x 2 = 22 quantities here" in page
    assert "It names 2. One of them" in page


def test_a_tie_with_the_better_one_is_told_from_a_better_value():
    points = [made_up(ORIGINAL), made_up("base", keep__exact=0.9, forget_holdout__exact=0.1)]
    points += [made_up("distil", keep__exact=0.8, forget_holdout__exact=0.0)]
    points += [made_up("warm", keep__exact=0.95, forget_holdout__exact=0.0)]
    page = ingredients_page(make_rows(points))
    assert page is not None
    assert "in 2 of 2 quantities (better: keep survives; level: holdout exact)" in page
    assert "is left out" in page


def test_trainings_that_the_cap_ended_are_counted():
    stopped, capped = {"ppo": 40, "is_stopped": True}, {"ppo": 60, "is_stopped": False}
    for steps, expected in (
        ((stopped, stopped), ""), ((capped, capped), "cap"), ((stopped, capped), "cap: 1 of 2"),
    ):  # fmt: skip
        points = [made_up(ORIGINAL), *(with_steps(made_up("base", seed), **s) for seed, s in enumerate(steps))]
        (row,) = [r for r in make_rows(points) if r.variant == "base"]
        assert caps(row) == expected
    page = ingredients_page([row, *(r for r in make_rows(points) if r.variant == ORIGINAL)])
    assert page is not None
    assert "| 50 [40, 60] (cap: 1 of 2) | 200 [160, 240] | 50 [40, 60] |" in page  # 4 updates a step, 64 of 64 records


def test_exposure_stands_beside_the_number_of_records():
    points = [made_up(ORIGINAL, 0, s) for s in (16, 128)]
    points += [with_steps(made_up("base", 0, s), ppo=20, is_stopped=True) for s in (16, 128)]
    points += [
        with_steps(made_up("distil", 0, 16), distillation=30),
        with_steps(made_up("distil", 0, 128), distillation=120),
    ]
    page = size_page(make_rows(points))
    assert page is not None
    assert "cannot tell the number of records from the exposure of each" in page
    ends = {tuple(line.split(" | ")[:2]): line.split(" | ")[-4:-1] for line in page.splitlines() if "`" in line}
    assert ends["| `base`", "16"] == ["20", "80", "80"]
    assert ends["| `base`", "128"] == ["20", "80", "10"]
    assert ends["| `distil`", "16"] == ["30", "30", "30"]  # all 16 in every step
    assert ends["| `distil`", "128"] == ["120 (cap)", "120", "30"]


def test_shapes_say_how_many_records_a_cell_is():
    page = shapes_page(make_rows([made_up(v) for v in (ORIGINAL, *BOTH)]))
    assert page is not None
    people, kept = page.split("## Records to keep")
    assert "A cell stands for 16 records: one is 6.2 %." in people
    assert "A cell stands for 8 records: one is 12.5 %." in kept
    assert "no shape in it is unseen" in people


def test_repeats_say_which_training_the_cap_ended():
    points = [made_up(ORIGINAL, lab="graded"), with_steps(made_up("base", lab="graded"), ppo=26, is_stopped=True)]
    points.append(with_steps(made_up("distil", lab="graded"), distillation=120))
    page = repeats_page(make_rows(points))
    assert page is not None
    assert "Steps of `base`: 26. Steps of `distil`: 120 (cap)." in page


def test_no_page_is_left_over_from_earlier_code(tmp_path):
    """tests/pages/test_pages.py compares each page with what the code writes; here: the code writes every page."""
    written = {page.name for page in write_pages(tmp_path, read_points(STUDY, Settings()))}
    assert written == {page.name for page in STUDY.glob("*.md")} - {"README.md"}
