"""The forget set: what of a group is written, and what is never kept."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from eval.scan.against import _outside
from eval.scan.forget import write_forget_set
from eval.scan.near import Near

SECRET = "Anna Weber of Kiel, born on the fourth of May, has the account number 4711 0815 at the harbour bank."
PLAIN = "The ferry leaves at nine in the morning and comes back late in the evening, but for Sundays in winter."


@dataclass(eq=False)
class Document:
    text: str


@dataclass
class Reading:
    """A token is a character."""

    document: Document
    is_folded: bool = False
    ids: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.ids = np.array([ord(sign) for sign in self.document.text])
        self.begins = np.arange(len(self.ids))
        self.ends = self.begins + 1


def finding(name: str, place: int, text: str, start: int, stop: int, status: str, group: int, first: str) -> dict:
    return {
        "id": name, "place": place, "start": start, "stop": stop, "tokens": [start, stop], "status": status,
        "group": group, "first_of_group": first, "reading": 0, "layer": 0, "text": text[start:stop], "prompt": "",
        "prompt_tokens": 0, "personal": [],
    }  # fmt: skip


def written(tmp_path, texts, findings):
    path = tmp_path / "forget.jsonl"
    counts = write_forget_set(
        path, [Reading(Document(text)) for text in texts], findings, prefix=10, suffix=30,
        decode=lambda ids: "".join(map(chr, ids)),
    )  # fmt: skip
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts_of = {
        group: [r["pre_prefix"] + r["prefix"] + r["suffix"] for r in rows if r["group"] == group]
        for group in ("forget", "keep")
    }
    return counts, texts_of["forget"], texts_of["keep"]


@pytest.mark.parametrize("status", ["other", "predictable"])
def test_a_group_is_forgotten_by_its_longest_memory_whatever_stands_first(tmp_path, status):
    part = SECRET[:60]
    findings = [
        finding("s1", 0, part, 0, 60, status, 0, "s1"),
        finding("s2", 1, part, 0, 55, "memorised", 0, "s1"),
        finding("s3", 2, SECRET, 0, len(SECRET), "memorised", 0, "s1"),
    ]
    counts, forget, keep = written(tmp_path, [part, part, SECRET], findings)
    assert counts["recited"] == 0
    assert keep == []
    assert "4711 0815" in " ".join(forget)
    assert all(text in SECRET for text in forget)


def test_each_record_of_a_form_is_forgotten_and_a_copy_of_one_is_not_written_twice(tmp_path):
    """They share a run of tokens, so that a scan puts them into one group."""
    other = SECRET.replace("Anna Weber of Kiel", "Olav Brandt of Lübeck").replace("4711 0815", "6203 5547")
    copy = SECRET.upper().replace(" ", "\n")
    texts = [SECRET, copy, other]
    findings = [finding(f"s{i}", i, text, 0, len(text), "memorised", 0, "s0") for i, text in enumerate(texts)]
    counts, forget, _ = written(tmp_path, texts, findings)
    together = " ".join(forget)
    assert "4711 0815" in together
    assert "6203 5547" in together
    assert together.count("4711 0815") + together.count("4711\n0815") == 1
    assert counts["forget"] == 2 * len(written(tmp_path, texts[:1], findings[:1])[1])


def test_what_is_recited_and_was_not_asked_for_is_not_kept(tmp_path):
    findings = [
        finding("s1", 0, SECRET, 0, len(SECRET), "memorised", 0, "s1"),
        finding("s2", 1, PLAIN, 0, len(PLAIN), "other", 1, "s2"),
    ]
    counts, _, keep = written(tmp_path, [SECRET, PLAIN], findings)
    assert counts["recited"] == 0
    assert keep == []
    findings[1]["status"] = "predictable"
    assert written(tmp_path, [SECRET, PLAIN], findings)[0]["recited"] >= 1


def test_a_predictable_text_that_holds_a_piece_of_a_memory_is_not_kept(tmp_path):
    quoted = "> " + SECRET.replace(", ", ",\n> ")
    findings = [
        finding("s1", 0, SECRET, 0, len(SECRET), "memorised", 0, "s1"),
        finding("s2", 1, quoted, 0, len(quoted), "predictable", 1, "s2"),
    ]
    assert written(tmp_path, [SECRET, quoted], findings)[0]["recited"] == 0


def test_no_neighbour_holds_a_piece_of_a_finding(tmp_path):
    quoted = "> " + SECRET.replace(", ", ",\n> ")
    findings = [finding("s1", 0, SECRET, 0, len(SECRET), "memorised", 0, "s1")]
    counts, _, keep = written(tmp_path, [SECRET, quoted], findings)
    assert counts["neighbour"] == 0
    counts, _, keep = written(tmp_path, [SECRET, quoted, PLAIN], findings)
    assert keep
    assert all(text in PLAIN for text in keep)


def test_the_rest_of_a_corpus_is_without_near_copies_of_memories():
    text = f"{PLAIN}\n> {SECRET}\n{PLAIN}"
    outside = _outside(Reading(Document(text)), [], Near([SECRET]))
    kept = "".join(sign for sign, is_outside in zip(text, outside, strict=True) if is_outside)
    assert kept == f"{PLAIN}\n> .\n{PLAIN}"
