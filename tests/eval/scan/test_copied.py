"""What stands earlier in the context of a pass is copied, not remembered."""

from contextlib import contextmanager

import numpy as np

from eval.scan.copied import COPY, copied, earlier
from eval.scan.measure import Columns
from eval.scan.results import WindowCounts
from eval.scan.run import Settings, scan
from tests.eval.scan.corpora import GROUP, document, lab, of, records, subject


def test_a_token_of_a_run_that_its_pass_has_shown_is_copied():
    ids = np.random.default_rng(0).integers(0, 50, 90)
    ids[60 : 60 + COPY + 4] = ids[10 : 10 + COPY + 4]
    ids[30 : 30 + COPY - 1] = ids[0 : COPY - 1]
    expected = np.zeros(90, dtype=bool)
    for start in range(90 - COPY + 1):
        if any((ids[j : j + COPY] == ids[start : start + COPY]).all() for j in range(start)):
            expected[start : start + COPY] = True
    assert expected.sum() == COPY + 4
    assert copied(earlier(ids), np.zeros(90, dtype=int)).tolist() == expected.tolist()
    assert not copied(earlier(ids), np.full(90, 15)).any()  # the pass begins behind the first copy
    assert copied(earlier(ids), np.full(90, 12)).sum() == COPY + 2
    assert copied(earlier(ids[:3]), np.zeros(3, dtype=int)).tolist() == [False] * 3


def cut(text):
    """The first 80 tokens of a text: two copies of them fit the lab's context."""
    return text[: lab().tokenizer(text, return_offsets_mapping=True)["offset_mapping"][80][1]]


def choices(ids):
    """The first choice after each token of a model that goes on as its context did after the same four; else -1."""
    known, found = {}, []
    for i in range(len(ids)):
        known[tuple(ids[max(0, i - 4) : i])] = ids[i]
        found.append(known.get(tuple(ids[max(0, i - 3) : i + 1]), -1))
    return found


class CopyingMeter:
    """The columns of the copier, which has memorised nothing; and of ``known``, which it recites after any prompt."""

    def __init__(self, known: list[int]) -> None:
        self.known = known

    def columns(self, passes, firsts):
        for number, (ids, first) in enumerate(zip(passes, firsts, strict=True)):
            best = [-1, *choices(list(ids))][: len(ids)]
            right = np.array([a == b for a, b in zip(best, ids, strict=True)], dtype=bool)
            for at in range(len(ids) - len(self.known) + 1):
                if list(ids[at : at + len(self.known)]) == self.known:
                    right[at : at + len(self.known)] = True
            logprobs = np.where(right, -0.01, -9.0).astype(np.float32)[first:]
            yield number, Columns(right[first:], np.zeros(len(right) - first, dtype=bool), logprobs, logprobs)


def scanned(monkeypatch, folder, text: str, known: str):
    model = lab()
    ids = model.tokenizer(known, add_special_tokens=False)["input_ids"] if known else [-2]

    @contextmanager
    def copying(*arguments, **options):
        yield CopyingMeter(ids)

    monkeypatch.setattr("eval.scan.run.metered", copying)
    folder.mkdir()
    return scan(subject(), of(document("a.txt", text)), folder, Settings(controls=2), group=GROUP)


def test_the_second_copy_of_a_text_is_no_memory_of_a_model_that_copies(monkeypatch, tmp_path):
    never = cut(records("never", 1)[0].text)
    between = " ".join(f"{i * 7919 % 1000} things" for i in range(8))
    result = scanned(monkeypatch, tmp_path / "a", f"{never}\n{between}\n{never}\n", known="")
    assert result.findings  # it is recited
    assert {row["status"] for row in result.findings} == {"predictable"}
    assert all("context" in row["against"] for row in result.findings)
    assert all(row["alone_run"] < 50 for row in result.findings)
    assert [row["exact"] for row in result.summary["windows"]] == [0, 0]
    assert result.summary["windows_copied"] >= 1
    assert result.summary["verdict"]["state"] == "nothing found"


def test_the_second_copy_of_a_memory_is_still_a_memory(monkeypatch, tmp_path):
    known = cut(records("forget", 1)[0].text)
    between = " ".join(f"{i * 7919 % 1000} things" for i in range(8))
    result = scanned(monkeypatch, tmp_path / "a", f"{known}\n{between}\n{known}\n", known=known)
    assert [row["status"] for row in result.findings] == ["memorised", "memorised"]
    assert [row["alone_run"] is None for row in result.findings] == [True, False]


def test_a_window_counts_once_in_each_reading_and_not_where_it_is_copied():
    counts, row = WindowCounts(), {"prefix": 50, "exact": True, "samples": 1.0, "samples_top_k": 1.0}
    for reading, is_again, is_copied in [("as it stands", False, False), ("as it stands", True, False),
                                         ("folded", False, False), ("as it stands", False, True)]:  # fmt: skip
        counts.add({**row, "reading": reading, "is_again": is_again, "is_copied": is_copied})
    assert [(r["reading"], r["windows"]) for r in counts.rows()] == [("as it stands", 1), ("folded", 1)]
    assert counts.left_out == 1
