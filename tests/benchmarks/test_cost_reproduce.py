"""docs/reproduce.md shows the table that the cost model computes, and the rates in it are those of the models."""

from pathlib import Path

from benchmarks.cost.reproduce import MODELS, ROWS, TRAININGS, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduce.md"


def test_the_page_shows_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), "run python -m benchmarks.cost.reproduce"


def test_larger_models_cost_more_and_all_of_them_fit():
    rows = {cells[0]: cells for line in table().splitlines()[2:] if (cells := line.strip("| ").split(" | "))}
    assert list(rows) == list(MODELS)
    for family in ("gpt-neo", "opt"):
        sizes = [rows[f"{family}-{size}"] for size in ("125m", "1.3b", "2.7b")]
        for column in (2, 3, 4, 6):
            numbers = [float(cells[column].split()[0]) for cells in sizes]
            assert numbers == sorted(numbers)
        assert float(sizes[-1][2].split()[0]) < 80
    assert (ROWS, TRAININGS) == (1500, 9)
