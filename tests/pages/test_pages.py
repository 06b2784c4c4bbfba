"""Pages tell the truth: links lead somewhere, commands and options are real, tables are what the points say."""

import re
from functools import cache
from pathlib import Path

import pytest

import ppo
from benchmarks.readme_tables import PAGES as WITH_TABLES
from benchmarks.readme_tables import TABLES, rewritten
from benchmarks.study.points import Settings
from benchmarks.study.points import read_points as read_study
from benchmarks.study.tables import write_pages as study_pages
from eval.points import stored_points
from eval.report.comparison.page import write_pages
from unlearning.command_line import COMMANDS, flags
from unlearning.compare.methods import METHODS

ROOT = Path(ppo.__file__).parent.parent
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*/README.md"))
)
COMMAND = re.compile(r"(?:python|\.venv/bin/python) ((?:demem\.py|-m benchmarks\.[a-z_]+)\b[^`|&\n]*)")


@cache
def options_of_demem() -> set[str]:
    """Those of every command; tests/unlearning/test_command_line.py reads whole commands as the program does."""
    return {flag for command in COMMANDS for flag in flags(command)} | {"--help-all"}


@cache
def sources_of_benchmarks() -> str:
    """All of them: options of several programs are defined in modules that they share."""
    return "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "benchmarks").rglob("*.py")))


def is_program(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_is_started_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:benchmarks|docs|examples|models|tests)\.[\w.]*\w)", text):
        assert is_program(module), module


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_a_command_is_real(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for command in COMMAND.findall(text):
        program, *options = [command.split("#")[0].split()[0], *re.findall(r"--[a-z-]+", command.split("#")[0])]
        if program == "-m":
            assert is_program(command.split()[1]), command
        for option in options:
            name = option[2:].removeprefix("no-").replace("-", "_")
            known = option.replace("--no-", "--", 1) in options_of_demem()
            if program == "-m":
                known = f'"{option}"' in sources_of_benchmarks() or f"    {name}: " in sources_of_benchmarks()
            assert known or option == "--help", command


def test_commands_are_found_in_blocks_and_in_sentences():
    text = "`OMP_NUM_THREADS=1 python -m benchmarks.study --list`, and\n    python demem.py run --steps 2  # --no\n"
    assert COMMAND.findall(text) == ["-m benchmarks.study --list", "demem.py run --steps 2  # --no"]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_nothing_was_left_to_fill_in(page):
    assert "@@" not in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", WITH_TABLES)
def test_tables_of_results_are_what_the_points_say(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert rewritten(text, ROOT / "results") == text, "python -m benchmarks.readme_tables"


def test_pages_of_points_are_what_the_code_writes_now(tmp_path):
    """Results are rendered again when the code that renders them changes."""
    for name in ("compare", "equal", "smollm2-135m"):
        folder = ROOT / "results" / name
        write_pages(tmp_path, stored_points(folder), order=list(METHODS))
        for page in ("compare.md", "compare.tex"):
            assert (folder / page).read_text(encoding="utf-8") == (tmp_path / page).read_text(encoding="utf-8"), name
    study = ROOT / "results" / "study"
    for page in study_pages(tmp_path, read_study(study, Settings())):
        assert (study / page.name).read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), "study --render"


def test_a_table_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no table 'other'; known are headline, lab, "):
        rewritten("<!-- table: other -->\n<!-- end of table -->\n", tmp_path)


def test_every_table_stands_on_one_page():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in WITH_TABLES)
    assert {name: text.count(f"<!-- table: {name} -->") for name in TABLES} == dict.fromkeys(TABLES, 1)
