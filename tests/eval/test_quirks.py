"""Each quirk next to the definition that it differs from, with numbers by hand."""

import math
import zlib

import numpy as np
import pytest
import torch

from eval import extraction, membership, quirks
from eval.teacher import teacher_force
from tests.eval.test_metrics import right
from tests.fakes import tiny_gpt2


@pytest.mark.parametrize(
    ("pattern", "definition", "quirk"),
    [("rrrr", 1, 1), ("wrrr", 0.75, 0.75), ("rrwr", 0.25, 0.25), ("rrrw", 0, 0.25), ("wwww", 0, 0.25), ("w", 0, 1)],
)
def test_open_unlearning_ignores_the_last_token(pattern, definition, quirk):
    assert extraction.extraction_strength(right(pattern)) == definition
    assert quirks.open_unlearning_extraction_strength(right(pattern)) == quirk
    assert quirks.open_unlearning_extraction_strength(right("")) == 0


def test_demem_s_accuracy_is_mostly_over_the_prefix():
    is_right = right("r" * 49 + "w" * 50)  # the prefix is known, the suffix forgotten
    assert quirks.demem_memorization_accuracy(is_right) == pytest.approx(49 / 52)
    assert np.mean(is_right) == pytest.approx(49 / 99)


def test_demem_s_mean_drops_collapsed_rows():
    assert quirks.demem_mean([1.0, 3.0, 100.0], [5, 2, 1]) == 2.0
    assert math.isnan(quirks.demem_mean([1.0], [0]))


def test_mean_of_perplexities_is_not_the_perplexity():
    nlls = [math.log(2), math.log(8)]
    assert quirks.mean_sample_perplexity(nlls, [1, 1]) == pytest.approx(5)
    assert math.exp(sum(nlls) / 2) == pytest.approx(4)
    with pytest.raises(ValueError, match="at least one"):
        quirks.mean_sample_perplexity([], [])


def test_zlib_of_the_mean():
    logprobs = np.array([-1.0, -3.0])
    size = len(zlib.compress(b"abc"))
    assert quirks.carlini_zlib_score(logprobs, "abc") == pytest.approx(-2 / size)
    assert membership.zlib_score(logprobs, "abc") == pytest.approx(-4 / size)


def test_tpr_strictly_below_the_rate():
    others = np.arange(100.0)  # one false positive of 100 is exactly 1 %
    assert membership.tpr_at_fpr([98.5], others) == 1.0
    assert quirks.tpr_below_fpr([98.5], others) == 0.0
    assert quirks.tpr_below_fpr([98.5], np.arange(200.0) - 100) == 1.0  # one of 200 is below 1 %
    assert quirks.tpr_below_fpr([7.0], [5.0, 6.0]) == 1.0


def test_the_baseline_s_confidence_is_one_token_early():
    logprobs = np.array([-1.0, -2.0, -3.0, -4.0, -5.0])
    assert quirks.off_by_one_confidence(logprobs, 2) == pytest.approx(-3.5)
    assert np.mean(logprobs[-2:]) == pytest.approx(-4.5)
    with pytest.raises(ValueError, match="suffix_length=5"):
        quirks.off_by_one_confidence(logprobs, 5)


def test_open_unlearning_s_membership_scores_against_its_loops():
    """As its code computes them for the labelled tokens, from logits: src/evals/metrics/mia/*.py."""
    model, prefix, suffix = tiny_gpt2().eval(), [3, 4], [5, 6, 7, 8, 9]
    with torch.no_grad():
        rows = torch.log_softmax(model(torch.tensor([[*prefix, *suffix]])).logits[0].double(), dim=-1)[1:-1]
    logprobs = [float(row[token]) for row, token in zip(rows, suffix, strict=True)]
    standard = []
    for row, value in zip(rows, logprobs, strict=True):
        mean = float((row.exp() * row).sum())
        variance = float((row.exp() * row.square()).sum()) - mean**2
        standard.append((value - mean) / math.sqrt(max(variance, 1e-6)))
    (statistics,) = teacher_force(model, [[*prefix, *suffix]])
    found = quirks.open_unlearning_scores(statistics, len(suffix), "abc abc")
    average = -sum(logprobs) / 5
    assert found["mia_loss"] == pytest.approx(average, rel=1e-5)
    assert found["mia_zlib"] == pytest.approx(average / len(zlib.compress(b"abc abc")), rel=1e-5)
    assert found["mia_min_k"] == pytest.approx(-sum(sorted(logprobs)[:2]) / 2, rel=1e-5)  # int(5 * 0.4)
    assert found["mia_min_k_plus_plus"] == pytest.approx(-sum(sorted(standard)[:2]) / 2, rel=1e-4)
