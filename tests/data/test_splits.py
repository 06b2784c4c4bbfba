"""Leak-free splits and deduplication, against naive loops."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from data.challenge import read_challenge
from data.dedup import deduplicate, deduplicate_texts, first_occurrences, suffix_array
from data.splits import leak_free_split, ngram_groups, split_holdout
from data.types import Passage

CHALLENGE = Path(__file__).parents[3] / "shared" / "data" / "extraction_challenge"


def runs(ids, ngram):
    return {tuple(ids[start : start + ngram]) for start in range(len(ids) - ngram + 1)}


def naive_groups(rows, ngram):
    """Group labels by comparing all pairs until nothing changes."""
    labels = list(range(len(rows)))
    for first in range(len(rows)):
        for second in range(first):
            is_short = min(len(rows[first]), len(rows[second])) < ngram
            if rows[first] == rows[second] if is_short else runs(rows[first], ngram) & runs(rows[second], ngram):
                labels = [labels[second] if label == labels[first] else label for label in labels]
    return labels


def random_rows(seed, count=60, length=30, symbols=6):
    random = np.random.default_rng(seed)
    return [random.integers(0, symbols, size=int(random.integers(1, length))).tolist() for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_groups_equal_a_naive_loop(seed):
    rows = random_rows(seed)
    rows += [rows[0], rows[1]]
    labels = ngram_groups(rows, 5).tolist()
    naive = naive_groups(rows, 5)
    assert len(set(zip(labels, naive, strict=True))) == len(set(labels)) == len(set(naive))
    assert 1 < len(set(labels)) < len(rows)


def passages_of(rows):
    return [Passage(str(i), tuple(row[:3]), tuple(row[3:8]), tuple(row[8:])) for i, row in enumerate(rows)]


@pytest.mark.parametrize("per_group", [1, 5])
def test_no_two_splits_share_a_run(per_group):
    random = np.random.default_rng(0)
    rows = [random.integers(0, 900, size=40).tolist() for _ in range(60)]
    for index in range(0, 60, 3):  # every third row copies a run of 12 from its neighbour
        rows[index][20:32] = rows[index + 1][5:17]
    splits = leak_free_split(passages_of(rows), {"a": 12, "b": 20}, seed=1, ngram=12, per_group=per_group)
    assert [len(splits[name]) for name in ("a", "b")] == [12, 20]
    a, b = (set().union(*(runs(p.ids, 12) for p in splits[name])) for name in ("a", "b"))
    assert not a & b
    again = leak_free_split(passages_of(rows), {"a": 12, "b": 20}, seed=1, ngram=12, per_group=per_group)
    assert again == splits
    assert leak_free_split(passages_of(rows), {"a": 12, "b": 20}, seed=2, ngram=12, per_group=per_group) != splits


def test_the_pre_prefix_can_be_ignored():
    rows = [[1, 2, 3, *range(10 * i, 10 * i + 9)] for i in range(1, 5)]
    sizes = {"a": 2, "b": 2}
    with pytest.raises(ValueError, match=r"4 rows fall into 1 groups .* lacks \{'a': 1, 'b': 2\}|lacks"):
        leak_free_split(passages_of(rows), sizes, seed=0, ngram=3)
    assert leak_free_split(passages_of(rows), sizes, seed=0, ngram=3, with_pre_prefix=False)


def test_split_errors():
    passages = passages_of([list(range(20))])
    with pytest.raises(ValueError, match=r"1 rows fall into 1 groups .*lacks \{'b': 1\}.*ask for fewer rows"):
        leak_free_split(passages, {"a": 1, "b": 1}, seed=0)
    with pytest.raises(ValueError, match="split 'a' has size 0"):
        leak_free_split(passages, {"a": 0}, seed=0)
    with pytest.raises(ValueError, match="lacks"):
        leak_free_split([], {"a": 1}, seed=0)
    with pytest.raises(ValueError, match="per_group=0"):
        leak_free_split(passages, {"a": 1}, seed=0, per_group=0)


def test_holdout_shares_no_run_with_retain():
    random = np.random.default_rng(3)
    chunks = [random.integers(0, 500, size=30).tolist() for _ in range(40)]
    chunks += [list(chunk) for chunk in chunks[:10]]
    retain, holdout = split_holdout(chunks, holdout_share=0.2, seed=0, ngram=10)
    assert len(retain) + len(holdout) == 50
    assert len(holdout) == 10
    assert not set().union(*(runs(c, 10) for c in retain)) & set().union(*(runs(c, 10) for c in holdout))
    with pytest.raises(ValueError, match=r"2 retain chunks cannot be split"):
        split_holdout([[1, 2], [1, 2]], holdout_share=0.5, seed=0)
    with pytest.raises(ValueError, match=r"holdout_share=1.5"):
        split_holdout(chunks, holdout_share=1.5, seed=0)


def test_large_input_is_fast():
    random = np.random.default_rng(0)
    rows = random.integers(0, 50257, size=(15_000, 200))
    rows[::5, 100:150] = rows[1::5, 20:70]
    start = time.process_time()
    labels = ngram_groups(list(rows))
    assert len(set(labels.tolist())) == 12_000
    assert time.process_time() - start < 10


def test_as_many_groups_as_rows_are_split_as_fast():
    started = time.process_time()
    retain, holdout = split_holdout([[i] for i in range(150_000)], holdout_share=0.2, seed=0)
    assert (len(retain), len(holdout)) == (120_000, 30_000)
    assert time.process_time() - started < 8


@pytest.mark.skipif(not CHALLENGE.is_dir(), reason="the extraction challenge's rows are not on this machine")
def test_real_validation_rows_split_without_leak():
    arrays = read_challenge(CHALLENGE, "val")
    passages = [Passage(str(i), *(tuple(arrays[p][i].tolist()) for p in arrays)) for i in range(len(arrays["prefix"]))]
    splits = leak_free_split(passages, {"forget": 32, "forget_holdout": 32}, seed=0)
    a, b = (set().union(*(runs(p.ids, 20) for p in split)) for split in splits.values())
    assert not a & b


def naive_removed(documents, length):
    """Which symbols are removed: those of a window seen earlier, except where it overlaps its first occurrence."""
    seen, marks = {}, [[False] * len(document) for document in documents]
    for number, document in enumerate(documents):
        for start in range(len(document) - length + 1):
            window = tuple(document[start : start + length])
            first_number, first_start = seen.setdefault(window, (number, start))
            if (first_number, first_start) == (number, start):
                continue
            opens = max(start, first_start + length) if first_number == number else start
            for position in range(opens, start + length):
                marks[number][position] = True
    return marks


@pytest.mark.parametrize("symbols", [2, 5, 40])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_dedup_equals_a_naive_loop(symbols, length):
    documents = random_rows(symbols + length, count=25, length=40, symbols=symbols)
    documents += [[], documents[3], documents[4][2:] + documents[5]]
    kept, report = deduplicate(documents, length=length)
    marks = naive_removed(documents, length)
    expected = [[s for s, gone in zip(d, m, strict=True) if not gone] for d, m in zip(documents, marks, strict=True)]
    assert kept == expected
    assert report.total == sum(map(len, documents))
    assert report.removed == sum(map(sum, marks))
    removed = {(span.document, i) for span in report.spans for i in range(span.start, span.stop)}
    assert removed == {(d, i) for d, row in enumerate(marks) for i, gone in enumerate(row) if gone}
    for span in report.spans:
        assert documents[span.document][span.start] == documents[span.first_document][span.first_start]
        assert (span.first_document, span.first_start) < (span.document, span.start)


def test_dedup_of_a_planted_span():
    random = np.random.default_rng(1)
    a, b = random.integers(0, 1000, size=200).tolist(), random.integers(0, 1000, size=200).tolist()
    b[100:150] = a[30:80]
    kept, report = deduplicate([a, b])
    assert kept == [a, b[:100] + b[150:]]
    (span,) = report.spans
    assert (span.document, span.start, span.stop, span.first_document, span.first_start) == (1, 100, 150, 0, 30)
    b[149] += 1  # one token shorter than the limit
    assert deduplicate([a, b])[1].spans == []


def test_dedup_of_texts_and_of_a_loop():
    texts, report = deduplicate_texts(["Größe 12 € und so weiter", "er sagt: Größe 12 € und"], length=8)
    assert texts == ["Größe 12 € und so weiter", "er sagt: "]
    assert report.removed == 14
    assert deduplicate([[7] * 20], length=5)[0] == [[7] * 5]


@pytest.mark.parametrize("symbols", [1, 2, 30])
def test_suffix_array_equals_sorting(symbols):
    array = np.random.default_rng(symbols).integers(0, symbols, size=120)
    expected = sorted(range(len(array)), key=lambda start: array[start:].tolist())
    assert suffix_array(array).tolist() == expected


def test_first_occurrences_worked_example():
    assert first_occurrences(np.array([5, 6, 5, 6, 9]), 2).tolist() == [0, 1, 0, 3, 4]
    assert first_occurrences(np.array([5]), 2).tolist() == [0]
    assert suffix_array(np.zeros(0, dtype=np.int64)).tolist() == []


def test_different_windows_with_one_hash_are_not_repeats(monkeypatch):
    array = np.random.default_rng(1).integers(0, 3, size=200)
    array[[50, 120]] = [-1, -2]
    expected = first_occurrences(array, 4).tolist()
    assert any(first < place for place, first in enumerate(expected))
    monkeypatch.setattr("data.dedup.window_hashes", lambda symbols, length: np.zeros(len(symbols) - length + 1))
    assert first_occurrences(array, 4).tolist() == expected


def test_dedup_errors():
    with pytest.raises(ValueError, match="length=0"):
        deduplicate([[1]], length=0)
    with pytest.raises(ValueError, match="at least 0"):
        deduplicate([[-1]])
