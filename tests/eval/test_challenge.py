"""The challenge's score by hand, its CSV written and read, and guesses of a model that has memorised."""

import csv
import math

import numpy as np
import pytest
import torch

from eval import challenge
from eval.challenge import Guess, recall_at_errors
from tests.eval.test_evaluate import make_passages, train_memorised
from tests.fakes import tiny_gpt2
from tests.fuzz import npy

TRUTHS = [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_recall_counts_guesses_until_the_last_allowed_error():
    guesses = [
        Guess(0, (1, 1), 0.9),
        Guess(1, (9, 9), 0.8),  # the first error
        Guess(1, (2, 2), 0.7),
        Guess(1, (2, 2), 0.65),  # already solved: it does not count again
        Guess(2, (9, 9), 0.6),  # the second error ends the count
        Guess(3, (4, 4), 0.5),
    ]
    shuffled = [guesses[i] for i in (5, 2, 0, 4, 1, 3)]
    score = recall_at_errors(shuffled, TRUTHS, max_errors=2)
    assert (score.recall, score.num_right, score.num_errors) == (0.5, 3, 2)
    assert score.precision == pytest.approx(3 / 5)
    assert recall_at_errors(shuffled, TRUTHS, max_errors=3).recall == 0.75
    assert recall_at_errors([], TRUTHS).recall == 0.0


def test_recall_as_the_official_scorer_counts_it():
    """Its loop: at every right guess with fewer than 100 errors before it, recall is the share solved so far."""
    rng = np.random.default_rng(0)
    truths = [tuple(row) for row in rng.integers(0, 3, (300, 2)).tolist()]
    guesses = [
        Guess(int(rng.integers(300)), tuple(rng.integers(0, 3, 2).tolist()), float(rng.random())) for _ in range(400)
    ]
    solved, errors, answer = np.zeros(300), 0, 0.0
    for guess in sorted(guesses, key=lambda g: -g.confidence):
        if truths[guess.example] == guess.suffix:
            solved[guess.example] = 1
            answer = float(solved.mean()) if errors < 100 else answer
        else:
            errors += 1
    assert errors > 100
    assert recall_at_errors(guesses, truths).recall == pytest.approx(answer)


def test_a_guess_for_an_unknown_example_is_an_error():
    with pytest.raises(ValueError, match="example 4, but there are only 4"):
        recall_at_errors([Guess(4, (1,), 0.0)], TRUTHS)
    with pytest.raises(ValueError, match="0 examples"):
        recall_at_errors([], [])


def test_csv_round_trip(tmp_path):
    guesses = [Guess(3, (7, 8), -2.5), Guess(0, (1, 2), -0.125)]
    path = tmp_path / "guesses.csv"
    challenge.write_guesses(path, guesses)
    assert challenge.read_guesses(path) == challenge.ranked(guesses)
    # as the official validator reads it
    rows = list(csv.DictReader(path.open()))
    assert [int(row["Example ID"]) for row in rows] == [0, 3]
    assert [list(map(int, row["Suffix Guess"][1:-1].split(","))) for row in rows] == [[1, 2], [7, 8]]


def test_a_csv_without_confidences_is_ranked_by_its_order(tmp_path):
    path = tmp_path / "guesses.csv"
    path.write_text('Example ID,Suffix Guess\n5,"[1,2]"\n0,"[3, 4]"\n')
    found = challenge.read_guesses(path)
    assert [(g.example, g.suffix) for g in challenge.ranked(found)] == [(5, (1, 2)), (0, (3, 4))]
    path.write_text('Example ID,Suffix Guess\n5,"[1,x]"\n')
    with pytest.raises(ValueError, match=r"guesses\.csv, line 2"):
        challenge.read_guesses(path)
    path.write_text("Example,Suffix Guess\n")
    with pytest.raises(ValueError, match="must name the column 'Example ID' once"):
        challenge.read_guesses(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'0,"[1,2]",nan', "Confidence is no number"),
        (b'0,"' + b"[" * 50_000 + b'",1', "line 2: "),
        (b'0,"[1,2]"x",1', "line 2 is malformed CSV"),
        (b'0,"[1,\xff]",1', "line 2 is not UTF-8"),
        (b'0,"[1,2]"', "line 2 has 2 fields, the header has 3"),
    ],
)
def test_an_invalid_line_is_named(tmp_path, line, message):
    path = tmp_path / "guesses.csv"
    path.write_bytes(b"Example ID,Suffix Guess,Confidence\n" + line + b"\n")
    with pytest.raises(ValueError, match=rf"guesses\.csv, .*{message}"):
        challenge.read_guesses(path)


def test_truths_are_read_without_unpickling(tmp_path):
    np.save(tmp_path / "suffix.npy", np.array([[1, 50256]], dtype=np.uint16))
    assert challenge.read_truths(tmp_path / "suffix.npy") == [(1, 50256)]
    (tmp_path / "lying.npy").write_bytes(npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000, 0), }"))
    with pytest.raises(ValueError, match=r"lying\.npy"):
        challenge.read_truths(tmp_path / "lying.npy")
    np.save(tmp_path / "wrong.npy", np.array([1.0]))
    with pytest.raises(ValueError, match="expected integers"):
        challenge.read_truths(tmp_path / "wrong.npy")


def test_confidence_is_the_mean_over_the_whole_suffix():
    model = tiny_gpt2().eval()
    rows = torch.log_softmax(model(torch.tensor([[3, 4, 5, 6]])).logits[0].detach().double(), dim=-1)
    expected = (float(rows[1, 5]) + float(rows[2, 6])) / 2
    assert challenge.confidences(model, [[3, 4]], [[5, 6]]) == [pytest.approx(expected, abs=1e-5)]


def test_guesses_of_a_model_that_has_memorised():
    passages = make_passages()
    guesses = challenge.make_guesses(train_memorised(), [p.prefix for p in passages], 6, num_samples=4)
    assert [g.example for g in guesses] == list(range(9))
    assert all(len(g.suffix) == 6 and math.isfinite(g.confidence) for g in guesses)
    score = recall_at_errors(guesses, [p.suffix for p in passages], max_errors=1)
    assert score.recall == pytest.approx(6 / 9)  # the forget and keep passages, before the first never-trained one
    assert "samples:4" in challenge.signature(challenge.BASELINE, num_samples=4, seed=0)
