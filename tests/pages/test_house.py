"""docs/house.md shows the tree as it is: what it names exists, and it leaves out no folder, and no file of ppo/."""

import re
from pathlib import Path

from tests.test_imports import FLOORS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")


def paths_of_the_tree():
    """Every path that the tree names. Two spaces of indentation mean one folder down."""
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", PAGE, flags=re.DOTALL)
    above: list[str] = []
    for line in tree.splitlines():
        names, what = re.split(r"(?<=[/y])\s+(?!\S+\.py\b|\S+/\s)", line.strip(), maxsplit=1)
        assert what, line
        depth = (len(line) - len(line.lstrip())) // 2
        for name in names.split(", "):
            path = "".join(above[:depth]) + name
            assert re.fullmatch(r"[\w/]+(?:\.py|/)", path), line
            yield path
        above[depth:] = [names] if names.endswith("/") else []


def test_every_file_and_folder_of_the_tree_exists():
    paths = list(paths_of_the_tree())
    assert len(paths) > 100
    assert len(paths) == len(set(paths))
    for path in paths:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_file_and_folder_of_the_library_is_there():
    found = set()
    for path in (ROOT / "ppo").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        found.add(name.removesuffix("__init__.py"))
    assert len(found) > 100
    assert found - set(paths_of_the_tree()) == set()


def test_the_floors_inside_the_library_are_those_of_the_import_test():
    assert " ← ".join(map(", ".join, FLOORS)) in " ".join(PAGE.split())


def test_every_folder_with_code_is_there():
    named = set(paths_of_the_tree())
    found = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert found - named == set()
    assert {"results/", "demem.py"} <= named


def test_every_page_is_in_the_table_of_pages():
    table = PAGE.split("## The pages")[1].split("##")[0]
    assert set(re.findall(r"\]\((\w+\.md)\)", table)) | {"house.md"} == {p.name for p in (ROOT / "docs").glob("*.md")}
