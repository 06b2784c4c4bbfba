"""Measured passes in a folder: once each, whole portions, and a changed corpus is noticed."""

import numpy as np
import pytest

from eval.scan.measure import metered
from eval.scan.store import Store
from tests.fakes import tiny_gpt2

PASSES = [np.random.default_rng(i).integers(2, 23, 12 + i % 5).tolist() for i in range(20)]


class Died(Exception):
    pass


def filled(folder, passes=PASSES, *, die_after=None, seen=None):
    """The store of the passes; it dies after so many portions were measured."""

    def show(tokens, is_new):
        if seen is not None:
            seen.append(is_new)
        if die_after is not None and len(list(folder.iterdir())) == die_after:
            raise Died

    with metered(tiny_gpt2(), bos=0, length=20, batch_tokens=64) as meter:
        store = Store(folder, meter, portion_tokens=60, show=show)
        numbers = [store.add(ids, 3) for ids in passes]
        store.finish()
    return store, numbers


def test_a_store_that_was_broken_off_goes_on_with_the_same_bytes(tmp_path):
    whole, numbers = filled(tmp_path / "whole")
    with pytest.raises(Died):
        filled(tmp_path / "cut", die_after=2)
    (tmp_path / "cut" / "000002.tmp").write_bytes(b"half")  # what a kill leaves
    seen = []
    again, same = filled(tmp_path / "cut", seen=seen)
    assert seen == [False, False, *[True] * (len(seen) - 2)]
    assert numbers == same
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert len(files) > 3
    assert files == sorted(p.name for p in (tmp_path / "cut").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    for number in numbers:
        assert whole.columns(number).logprobs.tolist() == again.columns(number).logprobs.tolist()


def test_the_same_tokens_are_measured_once_and_a_pass_keeps_its_number(tmp_path):
    store, numbers = filled(tmp_path / "s", [*PASSES, *PASSES])
    assert len(store) == len(PASSES)
    assert numbers == [*range(20), *range(20)]
    assert [len(store.columns(n)) for n in numbers[:20]] == [len(ids) - 3 for ids in PASSES]
    assert store.add(PASSES[0], 4) == 20  # scored from another token on, it is another pass
    chosen = store.sample(5)
    assert chosen == sorted(chosen)
    assert set(store.sample(3)) < set(chosen)
    backwards, _ = filled(tmp_path / "b", PASSES[::-1])
    assert sorted(PASSES[n] for n in chosen) == sorted(PASSES[::-1][n] for n in backwards.sample(5))
    assert {len(PASSES[n]) for n in store.sample(20, least=15)} == {15, 16}


def test_files_are_readable_by_their_owner_alone(tmp_path):
    filled(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "s").iterdir()} == {0o600}


def test_another_text_and_a_damaged_file_are_errors(tmp_path):
    filled(tmp_path / "s")
    with pytest.raises(ValueError, match=r"000000.safetensors was measured on another text: the corpus"):
        filled(tmp_path / "s", PASSES[1:])
    store = Store(tmp_path / "none", None)
    store.add(PASSES[0], 3)
    with pytest.raises(ValueError, match=r"000000.safetensors is missing: that scan was not finished"):
        store.finish()
    (tmp_path / "s" / "000001.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"000001.safetensors is damaged: .*; delete it to measure it again"):
        filled(tmp_path / "s")
