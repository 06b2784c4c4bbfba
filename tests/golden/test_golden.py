"""This source tree trains to the same bits as the tree before the refactoring, and resumes its checkpoints."""

import json

import pytest
import torch

from tests.golden import compare, run
from tests.golden.committed import FOLDER, NUMBERS, numbers_of
from tests.golden.configurations import CASES, COMMITTED

OLD = "503a727"


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", COMMITTED)
def test_an_old_checkpoint_is_resumed_to_the_old_numbers(tmp_path, name):
    run.resume(CASES[name], FOLDER / name, tmp_path / "run")
    expected = json.loads(NUMBERS.read_text(encoding="utf-8"))[name]
    found = numbers_of(FOLDER / name, tmp_path / "run")
    assert len(expected) > 60
    assert {key: found.get(key) for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_old_commit_and_this_tree_give_the_same_bits(tmp_path, capsys):
    if compare.commit_of(OLD) is None:
        pytest.skip(
            f"{OLD} is not in this clone's history, so no bits were compared; the checkpoints that it wrote are in "
            "tests/golden/checkpoints, and test_an_old_checkpoint_is_resumed_to_the_old_numbers resumes those"
        )
    status = compare.main(["--old", OLD])
    said = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{said.splitlines()[-1]}")
    assert status == 0, said
    assert f"{len(CASES)} configurations trained, {len(CASES)} old checkpoints resumed" in said


def test_every_difference_is_named():
    old = {"a": "1", "checkpoint/state.json/step": "3", "resumed/differs in": "[]", "gone": "x"}
    new = {"a": "2", "checkpoint/state.json/step": "3", "checkpoint/state.json/own": "{}", "resumed/differs in": "[]"}
    new |= {"metrics/0/sampler/k3": "4"}
    wrong, added = compare.differences(old, new)
    assert [text.split("\n")[0] for text in wrong] == ["a", "gone"]
    assert added == ["checkpoint/state.json/own", "metrics/0/sampler/k3"]
    assert compare.report({"train x": old}, {"train x": old, "train y": new}, most=0) == 2


def test_a_configuration_that_fails_in_both_trees_is_a_difference():
    for name, value in (("error", "KeyError"), ("resumed/differs in", "['checkpoint/x']")):
        wrong, _ = compare.differences({name: value}, {name: value})
        assert len(wrong) == 1
    assert compare.report({}, {}, most=0) == 1
