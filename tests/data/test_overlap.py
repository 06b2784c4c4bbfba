"""A passage to forget that stands elsewhere too, and groups that share a text, are named."""

import json
import warnings

import numpy as np
import pytest

from data.splits import overlapping
from data.study import load_study
from tests.data.test_study import letters  # noqa: F401


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_equal_a_naive_loop(seed):
    random = np.random.default_rng(seed)
    rows = [random.integers(0, 4, random.integers(0, 9)).tolist() for _ in range(30)]
    others = [random.integers(0, 4, random.integers(0, 12)).tolist() for _ in range(4)]

    def runs(row, size):
        return {tuple(row[i : i + size]) for i in range(len(row) - size + 1)}

    expected = [
        i
        for i, row in enumerate(rows)
        if row and any(runs(row, min(5, len(row))) & runs(x, min(5, len(row))) for x in others)
    ]
    assert 0 < len(expected) < 30
    assert overlapping(rows, others, ngram=5) == expected
    assert overlapping(rows, [], ngram=5) == overlapping([], others, ngram=5) == []


def told(folder, letters, groups, retain=None):  # noqa: F811
    """The warnings about passages of 24 ids; ``groups``: the group and the number of each."""
    rows = [
        {"id": f"{group}{number}", "group": group, "prefix_ids": [2 + (number * 7 + i * i) % 20 for i in range(16)],
         "suffix_ids": [2 + (number * 3 + i) % 20 for i in range(8)]}
        for group, number in groups
    ]  # fmt: skip
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {}
    if retain is not None:
        (folder / "keep.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in retain(rows)))
        more["retain"] = [str(folder / "keep.jsonl")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_study(str(folder / "p.jsonl"), letters, 64, **more)
    return [str(w.message) for w in caught if w.category is RuntimeWarning]


def test_groups_that_share_a_text_are_named(tmp_path, letters):  # noqa: F811
    assert told(tmp_path, letters, [("forget", 1), ("forget_holdout", 2), ("never", 3)]) == []
    (words,) = told(tmp_path, letters, [("forget", 1), ("forget", 2), ("never", 2), ("keep", 3)])
    assert words.startswith("1 of 2 passages of the group 'forget' (such as forget2) share a run of 20 tokens")
    assert "'never'" in words
    assert "chance floor" in words
    (words,) = told(tmp_path, letters, [("keep", 1), ("forget", 1)])
    assert "is to be kept as well" in words


def test_text_to_keep_that_holds_a_passage_to_forget_is_named(tmp_path, letters):  # noqa: F811
    groups = [("forget", 1), ("forget", 2), ("keep", 3)]
    general = ["".join(chr(97 + (i * j + j * j) % 26) for j in range(128)) for i in range(1, 21)]
    assert told(tmp_path, letters, groups, lambda _: general) == []

    def with_a_passage(rows):
        inside = "".join(map(chr, [*rows[1]["prefix_ids"], *rows[1]["suffix_ids"]]))
        return [text[:50] + inside + text[74:] for text in general[:8]] + general[8:]  # too many for the holdout

    (kept,) = told(tmp_path, letters, groups, with_a_passage)
    assert "1 of 2 passages of the group 'forget' (such as forget2)" in kept
    assert "the text to keep: training would teach them again" in kept
