"""The pages tell the truth: cells print what they show, every name exists, the reference is up to date."""

import ast
import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import ppo.compat.trl
from benchmarks.ablations import run as ablations
from benchmarks.ablations.variants import VARIANTS, nothing
from docs import generate_api
from docs.cells import read_cells, run_cell, with_output
from eval.points import pack

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def read(name):
    return (DOCS / name).read_text(encoding="utf-8")


@functools.cache
def names_of(path):
    """The functions and classes of a file, and its methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {f"{node.name}.{item.name}" for item in getattr(node, "body", []) if hasattr(item, "name")}
    return names


@pytest.mark.parametrize("page", ["tutorial.md", "solutions.md", "algorithm.md"])
def test_every_name_in_the_code_exists(page):
    found = re.findall(r"`([\w/]+\.py):([\w.]+)`", read(page))
    assert found
    for path, name in found:
        assert name in names_of(ROOT / path), f"{page}: {path}:{name}"
    for path in re.findall(r"`([\w/]+\.(?:py|md))`", read(page)):
        assert (ROOT / path).is_file(), f"{page}: {path}"
    for target in re.findall(r"\]\(([\w.]+\.md)\)", read(page)):
        assert (DOCS / target).is_file(), f"{page}: {target}"


def test_tutorial_and_solutions_print_what_they_show():
    namespace = {"__name__": "page"}
    for page in ("tutorial.md", "solutions.md"):
        for cell in read_cells(read(page)):
            assert run_cell(cell, namespace, name=page) == cell.output, f"{page}, line {cell.line}"


def test_every_exercise_has_its_solution():
    asked, solved = (re.findall(r"^\*\*Exercise (\d+)\.\*\*", read(page), re.MULTILINE) for page in
                     ("tutorial.md", "solutions.md"))  # fmt: skip
    assert asked == solved == [str(number) for number in range(1, 10)]


def test_every_step_of_the_tutorial_names_its_place():
    sections = read("tutorial.md").split("\n## ")[2:]
    assert len(sections) == 9
    for section in sections:
        assert re.search(r"`[\w/]+\.py:[\w.]+`", section), section.splitlines()[0]


def test_a_step_by_hand_has_forty_lines_with_all_that_it_calls():
    sources = {}
    for cell in read_cells(read("tutorial.md")):
        for node in ast.parse(cell.code).body:
            if isinstance(node, ast.FunctionDef):
                sources[node.name] = ast.get_source_segment(cell.code, node)
    needed, waiting = set(), ["ppo_step_by_hand"]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        mentioned = {node.id for node in ast.walk(ast.parse(sources[name])) if isinstance(node, ast.Name)}
        waiting += (mentioned & sources.keys()) - needed
    assert needed == {"ppo_step_by_hand", "statistics", "clipped_loss"}
    lines = [line for name in needed for line in sources[name].splitlines() if line.strip()]
    assert len(lines) == 40


def test_the_reference_is_up_to_date():
    assert generate_api.render() == read("api.md"), "run python -m docs.generate_api"


def test_the_reference_knows_every_public_name_and_its_docstring():
    page = read("api.md")
    for module in ("ppo", "ppo.trace"):
        for name in generate_api.exported(module):
            assert f"\n### {module}.{name}\n" in page
    for name in ("distillation.unlearn", "decoding.logit_mixing"):
        assert f"\n### eval.baselines.{name}\n" in page
    assert all(entry.count("```text") == 2 for entry in page.split("\n### ")[1:]), "a name without a docstring"


def test_the_reference_has_a_link_to_every_name_and_whole_docstrings_of_methods():
    page = read("api.md")
    headings = [heading.replace(".", "").lower() for heading in re.findall(r"^### (.*)$", page, re.MULTILINE)]
    links = re.findall(r"\]\(#([\w-]+)\)", page)
    assert [link.removesuffix("-1") for link in links] == headings
    assert len(links) == len(set(links))  # ppo.Replay and ppo.replay need different links
    assert not re.search(r":[a-z]+:`", page)
    names = {"Trainer": ppo.Trainer, "PPOTrainer": ppo.compat.trl.PPOTrainer}
    words = " ".join(page.split())
    for owner in names.values():
        for name, method in vars(owner).items():
            doc = getattr(getattr(method, "__func__", method), "__doc__", None)
            if not name.startswith("_") and doc:
                assert " ".join(generate_api.plain(doc).split()) in words, name
    for said in ("which of the B responses to look at", "a second Ctrl-C ends at once", "newest undamaged one"):
        assert said in words
    for name in ("harness.run_tasks", "utility.cloze_accuracy", "attacks.suite.run_attacks"):
        assert f"\n### eval.{name}\n" in page


def test_cells_know_their_output_and_can_be_given_another():
    page = "a\n```python\nprint(1)\n```\n\n```text\n2\n```\n\nb\n```python\nx = 3\n```\n"
    cells = read_cells(page)
    assert [(cell.line, cell.output) for cell in cells] == [(2, "2\n"), (11, "")]
    outputs = [run_cell(cell, {}, name="page") for cell in cells]
    assert with_output(page, cells, outputs) == page.replace("2\n```", "1\n```")
    with pytest.raises(ValueError, match="line 2: an output block that follows no cell"):
        read_cells("a\n```text\n2\n```\n")


def test_an_error_in_a_cell_names_the_line_of_the_page():
    (cell,) = read_cells("a\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_cell(cell, {}, name="page.md")
    assert caught.traceback[-1].lineno + 1 == 5


# ---------------------------------------------------------------------- the ablations


def test_every_detail_has_a_test_or_a_variant_and_every_variant_a_detail():
    details = re.split(r"^\d+\. ", read("algorithm.md").split("## Measured")[0], flags=re.MULTILINE)[1:]
    assert len(details) >= 20
    named = set()
    for detail in details:
        variants = {v for v in re.findall(r"`([\w.-]+)`", detail.partition("variant")[2]) if v in VARIANTS}
        assert variants or re.search(r"`tests/[\w/]*test_\w+\.py:test_", detail), detail
        named |= variants
    assert named == VARIANTS.keys() - {"base"}


def test_every_variant_is_a_valid_config_that_differs_from_the_base():
    configs = {name: variant.config(seed=1) for name, variant in VARIANTS.items()}
    for name, variant in VARIANTS.items():
        is_same = configs[name] == configs["base"]
        assert is_same == (not variant.changes), name
        assert name == "base" or variant.changes or variant.prepare.__name__ != "nothing"


def point(name, seed, score, settings):
    found = dict.fromkeys(ablations.COLUMNS, 1.0) | {"score": score}
    machine = {"commit": "abc", "python": "3", "torch": "2", "processor": "p", "threads": 1}
    result = {"variant": name, "seed": seed, "settings": settings, "found": found, "error": None, "machine": machine}
    return result | {"config": json.loads(json.dumps(VARIANTS[name].config(seed=seed).to_dict()))}


def test_the_table_shows_means_and_ranges_and_counts_what_is_missing():
    settings = {"steps": 40}
    points = [point("base", seed, score, settings) for seed, score in enumerate((1.0, 2.0, 6.0))]
    points[1]["machine"] = points[1]["machine"] | {"commit": "def"}
    table, missing = ablations.render(points, seeds=3)
    assert "| `base` | the task's base: the library's defaults, but response_length 24 (not 50), " in table
    assert "learning_rate 0.0001 (not 1.41e-05), " in table
    assert " | 3 [1, 6] |" in table
    assert "commit abc, def," in table
    assert missing == 3 * (len(VARIANTS) - 1)
    page = f"a\n{ablations.BEGIN}\nold\n{ablations.END}\nb\n"
    assert ablations.with_table(page, "new") == page.replace("old", "new")
    assert ablations.with_table(read("algorithm.md"), "new").count("new\n<!--") == 1


def committed_points():
    return ablations.read_points(ROOT / "results" / "ablations", ablations.Settings())


def test_the_page_shows_the_table_of_the_committed_points():
    table, missing = ablations.render(committed_points(), seeds=3)
    assert missing == 0
    page = read("algorithm.md")
    assert page == ablations.with_table(page, table), "run python -m benchmarks.ablations --render"


def test_the_reading_of_the_table_names_every_variant_that_lies_outside_the_base():
    values = {}
    for found in committed_points():
        for column in ablations.COLUMNS:
            values.setdefault((found["variant"], column), []).append(found["found"][column])
    apart = [
        name
        for (name, column), mine in values.items()
        if max(mine) < min(values["base", column]) or min(mine) > max(values["base", column])
    ]
    text = read("algorithm.md").split("## Measured")[1]
    assert f"300 comparisons\nbelow about 30 would if no switch did anything. {len(apart)} do." in text
    assert (len(VARIANTS) - 1) * len(ablations.COLUMNS) == 300
    shows, nothing_seen = text.split("What this shows")[1].split("*Nothing to see here*")
    assert set(re.findall(r"`([\w.-]+)`", shows)) >= set(apart)
    assert set(re.findall(r"`([\w.-]+)`", nothing_seen)) == set(VARIANTS) - set(apart) - {"base"}


def test_a_point_is_measured_once_and_measured_again_with_other_settings(tmp_path, monkeypatch):
    runs = []

    def run_point(name, seed, settings):
        runs.append((name, seed, settings.steps))
        return point(name, seed, 1.0, vars(settings)) | {"seconds": 0.0}

    monkeypatch.setattr(ablations, "run_point", run_point)
    for steps in (3, 3, 4):
        ablations.measure_point(tmp_path, "base", 0, ablations.Settings(steps=steps), label="")
    assert [steps for _, _, steps in runs] == [3, 4]
    assert len(ablations.read_points(tmp_path, ablations.Settings(steps=4))) == 1
    assert ablations.read_points(tmp_path, ablations.Settings(steps=3)) == []
    assert pack(tmp_path) == 1
    for steps in (4, 5):  # a packed point is measured again only for other settings
        ablations.measure_point(tmp_path, "base", 0, ablations.Settings(steps=steps), label="")
    assert [steps for _, _, steps in runs] == [3, 4, 5]
    assert ablations.read_points(tmp_path, ablations.Settings(steps=4)) == []
    assert len(ablations.read_points(tmp_path, ablations.Settings(steps=5))) == 1
    monkeypatch.setitem(VARIANTS, "base", replace(VARIANTS["base"], changes={"gamma": 0.9}))
    assert ablations.read_points(tmp_path, ablations.Settings(steps=5)) == []  # they were measured with another config


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.prepare is not nothing])
def test_a_point_can_be_measured(name):
    settings = ablations.Settings(steps=1, end_prompts=4, holdout=1)
    result = json.loads(json.dumps(ablations.run_point(name, 0, settings)))
    assert result["error"] is None
    assert ablations.is_current(result, settings)
    assert result["found"].keys() >= ablations.COLUMNS.keys()
    assert 0.5 < result["found"]["perplexity_ratio"] < 2


@pytest.mark.slow
def test_the_quick_look_runs_and_leaves_the_page_alone(tmp_path, capsys):
    before = read("algorithm.md")
    names = ["base", "dropout", "cold-mismatch", "rloo", "separate-critic", "retain"]
    assert ablations.main(["--quick", "--out", str(tmp_path), "--variants", ",".join(names)]) == 0
    assert sorted(file.name for file in (tmp_path / "points").iterdir()) == sorted(
        f"{name}-seed0.json" for name in names
    )
    assert read("algorithm.md") == before
    assert "left as it is" in capsys.readouterr().out
