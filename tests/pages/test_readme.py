"""The README is short and true: its programs run, its tables are what was measured, its claims are computed."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ppo
from docs.cells import read_cells, run_cell
from eval.report import render_table

ROOT = Path(ppo.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.split()) <= 1000  # as wc -w counts


def test_its_programs_run_and_learn_from_other_advantages_under_all_checks():
    """They run with fewer steps than the page shows. The slow test takes all of them."""
    namespace = {"__name__": "readme"}
    first, second = read_cells(README)
    short = first.code.replace("steps=20", "steps=1"), second.code.replace("steps=10", "steps=1")
    assert all(new != cell.code for new, cell in zip(short, (first, second), strict=True))
    for code in short:
        assert run_cell(replace(first, code=code), namespace, name="README.md").strip()
    trainer = namespace["trainer"]
    assert trainer.step == 1
    rollout = trainer.rollout()
    totals = rollout.rewards.sum(dim=1)
    expected = (totals - totals.median())[:, None] * rollout.generation.mask
    assert expected.abs().max() > 0
    assert rollout.advantages.equal(expected)
    assert abs(trainer.update(rollout)["rollout/logprob_gap"]) < 1e-4  # ratio 1 before the first optimiser step


@pytest.mark.slow
def test_its_programs_run_offline():
    code = "".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 11


def test_programs_have_the_lines_that_the_headings_say():
    ppo_in, hack_in = (cell.code.strip().splitlines() for cell in read_cells(README))
    assert len([line for line in ppo_in if line and not line.startswith(("import", "from"))]) <= 10
    assert len([line for line in hack_in if line]) <= 10


def test_the_oracle_has_as_many_lines_as_it_says():
    lines = len((ROOT / "tests" / "oracle.py").read_text(encoding="utf-8").splitlines())
    assert f"the whole algorithm in {lines} lines of plain loops" in " ".join(README.split())


def table_of_the_lab() -> list[str]:
    """The table that `make demem` printed, from the committed run."""
    found = json.loads((ROOT / "results" / "lab" / "evaluation.json").read_text(encoding="utf-8"))
    return render_table(found["before"]["summary"], found["after"]["summary"]).splitlines()


def test_make_demem_prints_these_rows():
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    (block,) = (text for language, text in fences if not language)
    shown = block.splitlines()
    assert len(shown) == 1 + 5
    assert set(shown) <= set(table_of_the_lab())


def test_the_manual_shows_the_whole_table_of_make_demem():
    assert "\n".join(table_of_the_lab()) in (ROOT / "docs" / "demem.md").read_text(encoding="utf-8")
