"""``ppo`` stands alone: in anybody's folder, beside siblings that must not be imported, and in the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIBLINGS = ("rewards", "models", "data", "eval", "benchmarks")
IMPORT_ALL = """
import importlib, pkgutil, sys
import ppo
assert ppo.__file__.startswith(sys.argv[1]), ppo.__file__
names = [m.name for m in pkgutil.walk_packages(ppo.__path__, "ppo.")]
for name in names:
    importlib.import_module(name)
print(len(names), *(s for s in ("rewards", "models", "data", "eval", "benchmarks", "tests") if s in sys.modules))
"""


def copy_package(target: Path) -> None:
    for source in (ROOT / "ppo").rglob("*.py"):
        file = target / source.relative_to(ROOT)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read_bytes())


def test_every_submodule_imports_beside_siblings_that_raise(tmp_path):
    copy_package(tmp_path)
    for name in SIBLINGS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    (tmp_path / "eval.py").write_text("raise RuntimeError('eval.py was imported')")
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, *siblings = done.stdout.split()
    assert int(count) >= 20
    assert siblings == []


def test_no_source_line_of_ppo_imports_a_sibling():
    for path in (ROOT / "ppo").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in SIBLINGS, f"{path}: {line}"


def test_eval_and_rewards_import_no_sibling_but_the_allowed_one():
    allowed = {"rewards": set(), "eval": {"rewards"}, "models": set(), "data": set()}
    for room, neighbours in allowed.items():
        for path in (ROOT / room).rglob("*.py"):
            if path.name == "__main__.py":  # a program may import several packages
                continue
            for line in path.read_text(encoding="utf-8").splitlines():
                words = line.split()
                if words[:1] in (["import"], ["from"]):
                    target = words[1].split(".")[0]
                    assert target not in set(SIBLINGS) - neighbours - {room}, f"{path}: {line}"


@pytest.mark.slow
def test_the_wheel_holds_ppo_alone(tmp_path):
    copy = tmp_path / "copy"
    copy_package(copy)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for name in SIBLINGS:
        (copy / name).mkdir()
        (copy / name / "__init__.py").write_text("")
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("ppo_lm-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ppo"}
