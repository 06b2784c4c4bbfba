"""Siblings: which of a model's own texts are unlearned beside the passages."""

import pytest

from models.own_text import Written
from unlearning.deep import siblings as module
from unlearning.deep.siblings import common_heads, siblings

FORGET = [[*range(10, 20), *range(30, 50)], [*range(10, 20), *range(60, 80)]]  # a template of ten tokens, private ones
LIKE = [*range(10, 20), *range(100, 120)]  # the template with other facts: a third of it is shared
AGAIN = [*range(100, 120), *range(10, 20)]  # shares 20 tokens with it
ITSELF = [*range(10, 20), *range(30, 45), 1, 2, 3]  # the first passage, nearly
UNLIKE = list(range(200, 230))
SHORT = list(range(10, 20))


@pytest.fixture
def write(monkeypatch):
    def written(*texts):
        monkeypatch.setattr(
            module, "sampled_texts", lambda model, heads, **asked: [Written(list(text), -0.1) for text in texts]
        )

    return written


def found(**changes):
    settings = {"most": 5, "count": 8, "length": 30, "seed": 0} | changes
    return siblings(None, 0, FORGET, **settings)


def test_what_is_like_the_passages_and_none_of_them(write):
    write(UNLIKE, ITSELF, LIKE, SHORT, AGAIN)
    (only,) = found()
    assert list(only.ids) == LIKE
    assert only.group == "forget"
    assert len(only.prefix) == 10
    assert only.pre_prefix == ()


def test_the_likeliest_come_first_and_no_more_than_asked(write):
    others = [[*range(10, 20), *range(300 + 20 * i, 320 + 20 * i)] for i in range(4)]
    write(*others)
    assert [list(p.ids) for p in found(most=2)] == others[:2]
    assert len({p.id for p in found()}) == 4


def test_a_model_that_recites_nothing_of_the_kind_has_none(write):
    write(UNLIKE, SHORT)
    assert found() == []
    write()
    assert found() == []


def test_what_is_to_be_kept_is_no_sibling(write):
    write(LIKE)
    assert found(keep=[[7, *LIKE[-20:]]]) == []
    assert len(found(keep=[[7, *LIKE[-19:]]])) == 1  # 19 tokens are no run of 20


def test_heads_are_what_two_passages_begin_with():
    assert common_heads([[1, 2, 3, 4], [1, 2, 9, 9], [5, 6, 7]]) == [[1], [1, 2]]
    assert common_heads([[1, 2], [1, 2]]) == [[1]]  # a head is not the whole passage
    assert common_heads([[1], [2, 3]]) == []


def test_the_model_is_asked_from_its_start_token_and_from_each_head(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "sampled_texts", lambda model, heads, **more: asked.extend(heads) or [])
    siblings(None, 0, [[1, 2, 3], [1, 2, 4]], most=5, count=7, length=30, seed=0)
    assert asked == [[0], [1], [1, 2], [0], [1], [1, 2], [0]]


def test_what_is_made_up_is_no_sibling(monkeypatch):
    texts = [Written(LIKE, -0.1), Written([*range(10, 20), *range(300, 320)], -0.9)]
    monkeypatch.setattr(module, "sampled_texts", lambda model, heads, **asked: texts)
    assert [list(p.ids) for p in found()] == [LIKE]


def test_a_text_mixed_of_two_records_is_no_sibling(write):
    other = [*range(10, 20), *range(300, 320)]
    mixed, with_a_passage = [*LIKE[:20], *other[20:]], [*range(10, 20), *range(30, 40), *range(400, 410)]
    write(LIKE, mixed, with_a_passage, other)
    assert [list(p.ids) for p in found()] == [LIKE, other]
