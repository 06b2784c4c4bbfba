"""Text metrics and measures against hand-computed numbers, sacrebleu itself and plain loops."""

from __future__ import annotations

import math
import random

import pytest
import sacrebleu

from ppo.types import Sample
from rewards.bleu import (
    Bleu,
    BleuMeasure,
    DenseBleuMeasure,
    count_ngrams,
    n_bleu,
    prefix_scores,
    token_ends,
    word_places,
)
from rewards.edit import edit_distances, edit_similarity, normalized_distances
from rewards.repetition import distinct_n, loop_share, repeated_share, repeats

WORDS = ["the", "cat", "sat", "on", "a", ",", "3.5", "%", "dogs;", "don't", "well-known", "(e.g.", "this)", "US$", "&"]


def sample(
    text: str = "",
    ids: list[int] | None = None,
    *,
    truth: str = "",
    truth_ids: list[int] | None = None,
    eos: bool = False,
) -> Sample:
    row = {"prompt": "p", "suffix": truth, "suffix_ids": truth_ids or []}
    return Sample("p", text, [1], ids if ids is not None else [], row, eos)


def random_text(rng: random.Random, low: int = 0, high: int = 14) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


# BLEU


def test_sentence_bleu_is_sacrebleu() -> None:
    rng, bleu = random.Random(0), Bleu()
    metric = sacrebleu.BLEU(effective_order=True)
    for _ in range(200):
        candidate, reference = random_text(rng), random_text(rng, 1)
        assert bleu.sentence(candidate, reference) == metric.sentence_score(candidate, [reference]).score
    assert bleu.signature.split("|version")[0] == "BLEU|" + str(metric.get_signature()).split("|version")[0]


def test_corpus_bleu_is_sacrebleu_without_effective_order() -> None:
    rng, bleu = random.Random(1), Bleu()
    candidates, references = [[random_text(rng, 1) for _ in range(30)] for _ in range(2)]
    assert bleu.corpus(candidates, references) == sacrebleu.corpus_bleu(candidates, [references]).score
    assert bleu.corpus(["one two three"], ["one two three"]) == 0.0  # no 4-gram: the known trap
    assert bleu.sentence("one two three", "one two three") == pytest.approx(100)
    with pytest.raises(ValueError, match="2 candidates and 1 references"):
        bleu.corpus(["a", "b"], ["a"])


def test_bleu_by_hand() -> None:
    # 5 words against 6: 1-grams 4/5, 2-grams 2/4, 3-grams 1/3, 4-grams 0/2 -> exp smoothing 1/(2*2); bp = exp(1 - 6/5)
    expected = 100 * math.exp(1 - 6 / 5) * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25
    assert Bleu().sentence("a b c x e", "a b c d e f") == pytest.approx(expected, abs=1e-9)
    assert Bleu().sentence("", "a b") == 0.0
    assert n_bleu(Bleu().sentence("", "a b")) == 100.0
    assert n_bleu(100.00000000000004) == 0.0  # rounding lets an exact copy score more than 100
    assert Bleu(is_lowercased=True).sentence("A B C D", "a b c d") == pytest.approx(100)


@pytest.mark.parametrize("accrual", ["brevity", "linear"])
def test_prefix_scores_end_at_the_sentence_score(accrual) -> None:
    rng, bleu = random.Random(2), Bleu()
    for _ in range(100):
        candidate, reference = random_text(rng, 1), random_text(rng, 1)
        scores = prefix_scores(bleu.words(candidate), bleu.reference(reference), accrual=accrual)
        assert scores[0] == 0.0
        assert scores[-1] == pytest.approx(bleu.sentence(candidate, reference), abs=1e-9)


def test_prefix_scores_are_the_bleu_of_each_prefix() -> None:
    rng, bleu = random.Random(3), Bleu()
    metric = sacrebleu.BLEU(effective_order=True, tokenize="none")
    for _ in range(30):
        words, truth = bleu.words(random_text(rng, 1)), bleu.words(random_text(rng, 1))
        scores = prefix_scores(words, count_ngrams(truth), accrual="brevity")
        for i in range(len(words) + 1):
            assert scores[i] == metric.sentence_score(" ".join(words[:i]), [" ".join(truth)]).score


def test_linear_accrual_by_hand() -> None:
    # Each word of a 4-word copy earns a quarter. Under plain BLEU the brevity penalty keeps the first scores low.
    assert prefix_scores(list("abcd"), count_ngrams(list("abcd")), accrual="linear") == pytest.approx(
        [0, 25, 50, 75, 100]
    )
    plain = prefix_scores(list("abcd"), count_ngrams(list("abcd")))
    assert plain == pytest.approx([0, 100 * math.exp(-3), 100 * math.exp(-1), 100 * math.exp(-1 / 3), 100])
    floored = prefix_scores(list("abcd"), count_ngrams(list("abcd")), accrual="linear", floor=40)
    assert floored == pytest.approx([40, 40, 50, 75, 100])


def pieces_decoder(pieces: list[str]):
    return lambda ids: "".join(pieces[i] for i in ids)


def test_dense_word_rewards_sum_to_the_measure_and_fall_on_word_ends() -> None:
    pieces = ["hel", "lo", " world", ",", " th", "is", " is", " it", ""]
    decode = pieces_decoder(pieces)
    ids = list(range(9))
    s = sample(decode(ids), ids, truth="hello world, this was it", eos=True)
    rewards = DenseBleuMeasure(decode, accrual="linear")([s])[0]
    assert sum(rewards) == pytest.approx(BleuMeasure()([s])[0])
    assert rewards[0] == rewards[4] == rewards[8] == 0.0  # inside a word, inside a word, EOS
    assert rewards[1] > 0  # "hello" is complete and right
    assert rewards[6] < rewards[5]  # "is" is wrong


def test_dense_rewards_sum_on_random_texts_with_odd_characters() -> None:
    rng = random.Random(4)
    pieces = [" a", "b", "-\n", "&quot;", " é", "\ufffd", "c.", " d,", "1", "", " ", "e"]
    decode = pieces_decoder(pieces)
    for _ in range(100):
        ids = [rng.randrange(len(pieces)) for _ in range(rng.randint(1, 20))]
        truth = decode([rng.randrange(len(pieces)) for _ in range(12)])
        s = sample(decode(ids), ids, truth=truth, truth_ids=ids[:5])
        for measure in (DenseBleuMeasure(decode), DenseBleuMeasure(decode, accrual="brevity")):
            assert sum(measure([s])[0]) == pytest.approx(BleuMeasure()([s])[0], abs=1e-9)


def test_dense_token_rewards() -> None:
    s = sample("", [5, 6, 7, 8, 0], truth="x", truth_ids=[5, 6, 7, 8], eos=True)
    assert DenseBleuMeasure()([s])[0] == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.0])


def test_token_ends_when_a_character_is_split_over_tokens() -> None:
    def decode(ids):  # tokens 1 and 2 are the two halves of é
        text = "".join({0: "a", 1: "\x01", 2: "\x02", 3: "b"}[i] for i in ids)
        return text.replace("\x01\x02", "é").replace("\x01", "\ufffd").replace("\x02", "\ufffd")

    assert token_ends(sample("aéb", [0, 1, 2, 3]), decode) == [1, 2, 2, 3]
    assert word_places(["a", "éb"], "a éb", [1, 3, 4]) == [0, 2]


def test_bleu_below_the_floor_earns_nothing() -> None:
    s = sample("a b c x e", [1, 2, 3, 4, 5], truth="a b c d e f", truth_ids=[1, 2, 3, 9, 5, 6])
    value = Bleu().sentence(s.text, "a b c d e f")
    assert BleuMeasure(floor=20.0)([s])[0] == pytest.approx((value - 20) / 100)
    assert BleuMeasure(floor=90.0)([s])[0] == 0.0
    assert sum(DenseBleuMeasure(floor=20.0)([s])[0]) == pytest.approx((value - 20) / 100)


def test_missing_truth_names_the_column() -> None:
    with pytest.raises(ValueError, match="suffix=None"):
        BleuMeasure()([Sample("prompt", "x", [1], [2], {}, False)])


# Edit distance


def naive_distance(a: list[int], b: list[int]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if i == 0 or j == 0:
                table[i][j] = i + j
            else:
                table[i][j] = min(
                    table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
                )
    return table[-1][-1]


def test_edit_distances_against_the_plain_table() -> None:
    rng = random.Random(5)
    first, second = [[[rng.randrange(4) for _ in range(rng.randint(0, 12))] for _ in range(150)] for _ in range(2)]
    expected = [naive_distance(a, b) for a, b in zip(first, second, strict=True)]
    assert edit_distances(first, second) == expected


def test_edit_by_hand() -> None:
    assert edit_distances([[1, 2, 3]], [[2, 3, 4, 4]]) == [3]
    assert normalized_distances([[], [1], [1, 2, 3, 4]], [[], [], [1, 2, 9, 4]]) == [0.0, 1.0, 0.25]
    s = sample(ids=[1, 2, 3, 0], truth_ids=[1, 2, 3, 4], eos=True)
    assert edit_similarity([s]) == [0.75]  # EOS does not count as a token of the text
    assert edit_distances([], []) == []


# Repetition


def test_repetition_by_hand() -> None:
    assert distinct_n("abab", 2) == pytest.approx(2 / 3)
    assert distinct_n("a", 2) == 0.0
    assert repeats("ababc", 2) == [False, False, False, True, False]
    assert repeated_share("ababc", 2) == 0.25
    assert repeated_share("", 2) == repeated_share("a", 2) == 0.0
    assert loop_share("xababab") == pytest.approx(6 / 7)
    assert loop_share("xabab") == 0.0  # two rounds are not a loop
    assert loop_share("aaaa") == 1.0
    assert loop_share([]) == 0.0
