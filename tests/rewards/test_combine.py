"""Guards, combinations and presets: what wins, what loses, and what the log says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppo.types import Sample
from rewards.combine import Reward, Term
from rewards.demem import RepetitionMeasure, default, paper
from rewards.edit import edit_similarity
from rewards.guards import ONLY_EMPTY, Guards, garbled_share

TRUTH = "the meeting with Anna Berg is on Monday at nine in room four"
IDS = list(range(10, 23))


def sample(text: str, ids: list[int], *, is_ended: bool = False, row: dict | None = None) -> Sample:
    return Sample("p", text, [1], ids, {"suffix": TRUTH, "suffix_ids": IDS} if row is None else row, is_ended)


OTHER = sample("she wrote that all offices stay closed until further notice from us", list(range(40, 52)))


@pytest.mark.parametrize(
    ("text", "ids", "is_ended", "reason"),
    [
        ("", [0], True, "empty"),
        ("  \n", [3, 4, 5, 6, 7], False, "empty"),
        ("good", [3, 0], True, "short"),
        ("\ufffd\x00\ufffd", [3, 4, 5, 6, 7, 8], False, "garbled"),
        ("the the the", [3] * 9, False, "loop"),
        ("ab ba", [3, 4, 3, 5, 3, 4, 5, 3, 5, 4, 3, 4, 5, 4, 3, 5, 3, 4, 3, 5], False, "repeated"),
        ("fine text", [3, 4, 5, 6, 7], False, None),
    ],
)
def test_guards_by_example(text, ids, is_ended, reason) -> None:
    assert Guards().reason(sample(text, ids, is_ended=is_ended)) == reason


def test_a_response_may_loop_and_be_short_as_its_truth_is() -> None:
    row = {"suffix": "0 0 0 0 0 0", "suffix_ids": [7] * 6}
    assert Guards().reason(sample("1 1 1 1 1 1", [8] * 6, row=row)) is None
    assert Guards().reason(sample("1 1 1 1 1 1", [8] * 6, row={})) == "loop"
    assert Guards().reason(sample("two words", [8, 9], row={"suffix": "x y", "suffix_ids": [3, 4]})) is None


def test_every_guard_but_the_one_against_empty_text_can_be_switched_off() -> None:
    assert ONLY_EMPTY.reason(sample("x", [3] * 20)) is None
    assert ONLY_EMPTY.reason(sample("", [3] * 20)) == "empty"
    with pytest.raises(ValueError, match=r"max_loop_share=1.5"):
        Guards(max_loop_share=1.5)


def test_garbled_share() -> None:
    assert garbled_share("ab\ufffd\x07") == 0.5
    assert garbled_share("naïve\tλ\n") == 0.0
    assert garbled_share("") == 0.0


def constant(*values):
    return lambda samples: list(values)


def test_weighted_sum_and_parts() -> None:
    samples = [OTHER, OTHER]
    reward = Reward((Term("a", -1.0, constant(0.5, 0.1)), Term("b", 2.0, constant(1.0, 0.0))))
    assert reward(samples) == pytest.approx([1.5, -0.1])
    assert reward.parts(samples) == pytest.approx({"a": 0.3, "b": 0.5})
    assert reward.worst_score == -1.0


def test_dense_and_sequence_terms_add_up_on_the_last_token() -> None:
    two = sample("x y", [3, 4])
    reward = Reward((Term("d", -1.0, constant([0.25, 0.5])), Term("s", 1.0, constant(1.0))))
    assert reward([two])[0] == pytest.approx([-0.25, 0.5])
    assert reward.parts([two]) == pytest.approx({"d": 0.75, "s": 1.0})
    guarded = Reward(reward.terms, ONLY_EMPTY)([sample("", [3, 4])])
    assert guarded == [[0.0, -1.0]]


def test_broken_measures_are_named() -> None:
    with pytest.raises(ValueError, match="'a' gave 1 values for 2"):
        Reward((Term("a", 1.0, constant(1.0)),))([OTHER, OTHER])
    with pytest.raises(ValueError, match="'a' is not finite for sample 1"):
        Reward((Term("a", 1.0, constant(1.0, float("nan"))),))([OTHER, OTHER])
    with pytest.raises(ValueError, match="'a' gave 1 token values for the 12"):
        Reward((Term("a", 1.0, constant([1.0])),))([OTHER])
    with pytest.raises(ValueError, match="a name of its own"):
        Reward((Term("a", 1.0, constant(1.0)), Term("a", 1.0, constant(1.0))))
    with pytest.raises(ValueError, match="give worst"):
        Reward((Term("a", -1.0, constant(1.0), high=float("inf")),))


def decode(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


@pytest.mark.parametrize(
    "reward",
    [paper(), default(), default(dense="tokens"), default(dense="words", decode=decode), default(bleu_floor=10.0)],
    ids=["paper", "default", "tokens", "words", "floor"],
)
def test_presets_order_responses_as_they_should(reward: Reward) -> None:
    """A different fluent text beats a copy. Empty text beats nothing."""
    copy, empty = sample(TRUTH, IDS), sample("", [0], is_ended=True)
    totals = [sum(v) if isinstance(v, list) else v for v in reward([OTHER, copy, empty])]
    assert totals[0] > totals[1] >= totals[2] - 1e-9
    assert totals[2] == reward.worst_score
    assert "BLEU" in reward.signature


def test_only_the_default_closes_the_loop_hole() -> None:
    looping = sample("the the the the the the the the the the the the", [9] * 12)
    assert paper()([looping, OTHER])[0] > -0.1
    assert default()([looping])[0] == default().worst_score == -1.5
    assert paper(guards=None)([sample("", [0], is_ended=True)]) == [0.0]  # the flaw of the published code, on request


def test_repetition_measure_sequence_and_dense() -> None:
    s = sample("x", [1, 2, 1, 2, 3, 0], is_ended=True)  # bigrams 12 21 12 23: one of four repeats
    assert RepetitionMeasure()([s]) == [0.25]
    assert RepetitionMeasure(is_dense=True)([s]) == [[0, 0, 0, 0.25, 0, 0]]


def test_dense_words_need_a_decoder() -> None:
    with pytest.raises(ValueError, match="needs decode"):
        default(dense="words")


INVISIBLE = [
    "\u200b",
    "\ufeff",
    "\u2060",
    "\u00ad",
    "\u3164",
    "\u2800",
    "\u115f",
    "\u0301",
    "\ufe0f",
    "\u200d",
    "\u2029",
    "\U000e0041",
]


@pytest.mark.parametrize("sign", INVISIBLE)
def test_invisible_text_is_empty(sign) -> None:
    sample = Sample("p", f" {sign}{sign}\n{sign}", [2], [3, 4, 5, 6, 7, 8], {}, False)
    assert ONLY_EMPTY.reason(sample) == "empty"
    assert ONLY_EMPTY.reason(replace(sample, text=f"{sign}a")) is None


def test_a_copy_parted_by_invisible_signs_is_garbled() -> None:
    assert garbled_share("\u200b".join("copied")) == 5 / 11
    assert garbled_share("\u0645\u06cc\u200c\u0631\u0648\u0645 \U0001f469\u200d\U0001f4bb\ufe0f") == 0.0


def test_garbled_characters_count_beyond_those_of_the_truth() -> None:
    ids, text = [3, 4, 5, 6, 7, 8], "icons \ue001\ue002 here"
    for truth, expected in (("icons \ue003\ue004 there", None), ("icons there", "garbled")):
        sample = Sample("p", text, [2], ids, {"suffix": truth, "suffix_ids": ids}, False)
        assert Guards().reason(sample) == expected


def test_the_eos_that_ends_response_and_truth_counts_for_neither() -> None:
    row = {"suffix": "a b", "suffix_ids": [5, 6, 1]}
    for ids, is_ended, similarity in (([5, 6, 1], True, 1.0), ([5, 6], False, 2 / 3), ([5, 6, 2], True, 2 / 3)):
        assert edit_similarity([Sample("p", "a b", [2], ids, row, is_ended)]) == [pytest.approx(similarity)]
