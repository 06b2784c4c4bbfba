"""The leave-one-out n-gram model by hand."""

import math

import numpy as np
import pytest

from unlearning.deep.ngram import leave_one_out_logprobs

V = 10


def test_by_hand():
    """The passages 1 2 3, 1 2 4 and 5 2 3; of the first, the others are 1 2 4 and 5 2 3."""
    found = np.exp(leave_one_out_logprobs([[1, 2, 3], [1, 2, 4], [5, 2, 3]], vocab_size=V, order=2)[0])
    unigrams = {1: 1, 2: 2, 4: 1, 5: 1, 3: 1}  # of the others, 6 tokens of 5 kinds
    p = {v: (unigrams.get(v, 0) - 0.75) / 6 + 0.75 * 5 / 6 / V for v in unigrams}
    assert found[0] == pytest.approx(p[1])
    assert found[1] == pytest.approx((1 - 0.75) / 1 + 0.75 * p[2])  # after 1 came 2, once
    assert found[2] == pytest.approx((1 - 0.75) / 2 + 0.75 * 2 / 2 * p[3])  # after 2 came 4 and 3


def test_all_tokens_together_have_probability_one():
    passages = [[1, 2, 3, 1, 2, 4], [1, 2, 5, 3], [2, 2, 2]]
    for last in ([], [1], [1, 2], [7, 2]):
        total = 0.0
        for v in range(V):
            total += math.exp(leave_one_out_logprobs([[*last, v], *passages], vocab_size=V, order=3)[0][-1])
        assert total == pytest.approx(1.0)


def test_a_passage_does_not_vouch_for_itself():
    alone = leave_one_out_logprobs([[1, 2, 3]], vocab_size=V)[0]
    assert np.exp(alone) == pytest.approx([1 / V] * 3)
    template = [[1, 2, private, 4, 5] for private in (6, 7, 8, 9)]
    for found in leave_one_out_logprobs(template, vocab_size=V):
        assert np.exp(found)[[1, 4]].min() > 0.5  # 1 -> 2 and 4 -> 5 in all of them
        assert np.exp(found)[2] < 0.1


def test_nothing_is_said_where_the_others_lack_the_context():
    found = leave_one_out_logprobs([[1, 2, 3, 8], [1, 2, 4], [5, 6]], vocab_size=V, least_context=2)
    assert np.isnan(found[0]).tolist() == [True, True, False, True]  # "1 2" stands elsewhere, "2 3" does not
    assert np.isnan(found[2]).all()
