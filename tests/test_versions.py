"""The versions in setup.py, in constraints-oldest.txt and on the page about installation are the same ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
TRIED = ("gguf", "peft", "test")  # the extras that `make test-oldest` installs
CORE = ("torch", "transformers", "numpy", "sacrebleu", "tqdm")


def setup_arguments() -> dict[str, object]:
    (call,) = [
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    ]
    wanted = ("install_requires", "extras_require", "python_requires", "classifiers")
    return {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg in wanted}


def bounds() -> dict[str, str]:
    """The lower bound of each package of the core, and of the extras that were tried."""
    arguments = setup_arguments()
    lines = [*arguments["install_requires"], *(line for name in TRIED for line in arguments["extras_require"][name])]
    return {found.name: str(found.specifier).removeprefix(">=") for found in map(Requirement, lines)}


def oldest() -> dict[str, str]:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_what_setup_allows_is_what_was_tried():
    tried = oldest()
    for name, bound in bounds().items():
        release, lowest = Version(tried[name]).release, Version(bound).release
        assert release[: len(lowest)] == lowest, f"{name}: setup.py allows {bound}, {tried[name]} was tried"
    extras = setup_arguments()["extras_require"]
    others = {r.name: r.specifier for lines in extras.values() for r in map(Requirement, lines) if r.name in tried}
    for name, specifier in others.items():
        assert specifier.contains(tried[name]), name


def test_the_page_says_the_same():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| ([\w-]+) \| `([\d.]+)` \|", page, flags=re.MULTILINE))
    assert table == oldest()
    assert set(CORE) <= set(table)
    for name in CORE:
        assert f"{name} ≥ {bounds()[name]}" in page, name


def test_the_python_versions_of_the_page_are_the_classifiers():
    arguments = setup_arguments()
    kinds = [line.rsplit(" ", 1)[1] for line in arguments["classifiers"] if "Python :: 3." in line]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    tried = re.findall(r"^\| Python (3\.\d+)", page, flags=re.MULTILINE)
    assert sorted(set(tried), key=Version) == kinds
    assert arguments["python_requires"] == f">={kinds[0]}"
