"""Chance levels: each token is measured once, by its own tail; never-trained passages set the mean."""

import numpy as np
import pytest
import torch

from data.types import Passage
from tests.fakes import VOCAB, tiny_gpt2
from unlearning.deep import chance
from unlearning.deep.chance import NUM_HEADS, chance_levels, splice_logprobs

PASSAGES = [[2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


def test_every_token_is_measured_behind_three_or_four_true_ones(monkeypatch):
    asked = []

    def teacher_force(model, rows, *, starts, has_moments):
        found = []
        for row, start in zip(rows, starts, strict=True):
            asked.append((row, start))
            numbers = np.full(len(row), np.nan)
            numbers[start:] = [-float(x) for x in row[start:]]  # the "log-prob" names its token
            found.append(type("Found", (), {"logprobs": numbers})())
        return found

    monkeypatch.setattr(chance, "teacher_force", teacher_force)
    found = splice_logprobs(None, PASSAGES, PASSAGES, seed=0)
    for passage, numbers in zip(PASSAGES, found, strict=True):
        assert numbers.tolist() == [-x for x in passage]  # each token its own number, no NaN, no double
    for row, start in asked:
        owner = next(p for p in PASSAGES if row[-1] in p)
        own = [x for x in row if x in owner]
        assert row[-len(own) :] == own  # the head is of another passage
        assert start >= 1
        for place in range(start, len(row)):
            tail = place - (len(row) - len(own))
            assert tail in (3, 4) or owner.index(row[place]) == tail  # or all there is
    assert len(asked) % NUM_HEADS == 0


def memorised():
    """A tiny model that knows the first passage by heart."""
    model = tiny_gpt2(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = torch.tensor([PASSAGES[0]])
    for _ in range(120):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def test_the_nll_of_never_trained_passages_is_the_original_s():
    model, never = memorised(), [[5, 9, 3, 7, 2, 8, 4], [20, 21, 22]]
    with torch.no_grad():
        logits = [torch.log_softmax(model(torch.tensor([x])).logits[0, :-1], -1) for x in never]
    truth = [-z.gather(-1, torch.tensor(x[1:]).unsqueeze(-1)) for z, x in zip(logits, never, strict=True)]
    assert chance._nll(model, never) == pytest.approx(float(torch.cat(truth).mean()), abs=1e-3)


def test_never_trained_passages_set_the_mean_and_move_what_is_certain_least(monkeypatch):
    model = memorised()
    monkeypatch.setattr(chance, "FORM_SHARE", 0.0)  # all are of a form
    plain = chance_levels(model, PASSAGES, vocab_size=VOCAB)
    monkeypatch.setattr(chance, "_nll", lambda model, passages: plain.nll + 0.5)
    found = chance_levels(model, PASSAGES, vocab_size=VOCAB, never=[[5, 9, 3]])
    assert found.nll == pytest.approx(plain.nll + 0.5, abs=1e-6)
    before, after = (np.concatenate([np.log(x) for x in f.levels]) for f in (plain, found))
    free = after > np.log(chance.LEAST_CHANCE) + 1e-9
    assert after[free] == pytest.approx(np.minimum(found.power * before, np.log(chance.MOST_CHANCE))[free], abs=1e-9)
    assert plain.power == 1
    assert found.power != 1
    assert [len(x) for x in found.levels] == [len(x) for x in PASSAGES]
    assert all(0 < p < 1 for x in found.levels for p in x)


def test_a_shared_template_is_likelier_than_a_private_fact():
    passages = [[1, 2, 3, private, 4, 5, 6, 7] for private in range(10, 20)]
    found = chance_levels(tiny_gpt2(dropout=0.0).eval(), passages, vocab_size=VOCAB)
    levels = np.array(found.levels)
    assert levels[:, [2, 5, 6, 7]].mean() > 3 * levels[:, 3].mean()  # the fourth token is the private one
    assert 0.3 < found.shared < 1


def test_a_single_passage_needs_other_texts():
    model = tiny_gpt2(dropout=0.0).eval()
    with pytest.raises(ValueError, match="single passage needs other texts"):
        chance_levels(model, PASSAGES[:1], vocab_size=VOCAB)
    found = chance_levels(model, PASSAGES[:1], vocab_size=VOCAB, others=[[3, 1, 4, 1, 5]])
    assert len(found.levels[0]) == len(PASSAGES[0])
    assert found.shared == 0


def test_a_private_word_begins_at_its_bound_and_ends_as_it_may():
    texts = ["Room", " is", " Oster", "hagen", ", pin ", "49", "62", "-B", " Vant", "71", "30"]
    passage = Passage("a", (0,), (1,), (2, 3, 4, 5, 6, 7), "forget", secrets=("Osterhagen", "4962-B"))
    other = Passage("b", (0,), (1,), (8, 3, 4, 9, 10, 7), "forget", secrets=("Vanthagen", "7130-B"))
    found, _ = chance.private_bounds(
        [passage, other], lambda ids, **_: "".join(texts[i] for i in ids), has_estimates=True
    )
    low, high = chance.MOST_PRIVATE, chance.MOST_CHANCE
    assert found.tolist() == [high, high, low, high, high, low, low, low]


def test_no_level_is_above_its_bound_and_the_mean_is_that_of_never_trained_passages(monkeypatch):
    monkeypatch.setattr(chance, "_nll", lambda model, passages: 4.0)
    monkeypatch.setattr(chance, "FORM_SHARE", 0.0)
    never, most = [[5, 3, 9, 2]], [np.full(len(p), 0.999) for p in PASSAGES]
    most[0][4], most[2][2] = 1e-3, 1e-3
    found = chance_levels(memorised(), PASSAGES, vocab_size=VOCAB, never=never, most=most)
    assert found.levels[0][4] <= 1e-3 + 1e-12
    assert found.levels[2][2] <= 1e-3 + 1e-12
    free = chance_levels(memorised(), PASSAGES, vocab_size=VOCAB, never=never)
    assert found.nll == pytest.approx(free.nll, abs=1e-6)
    assert found.power < free.power  # what the bounds take, the other levels get back


def test_what_is_estimated_to_be_private_counts_in_passages_of_a_common_form(monkeypatch):
    form = [[2, 3, 4, 5, 6, 7, 20 + i] for i in range(3)]
    free = [11, 12, 13, 14, 15, 16, 17]
    passages = [*form, free]
    bounds = [np.full(7, 0.05) for _ in passages]
    found = chance_levels(memorised(), passages, vocab_size=VOCAB, most_in_form=bounds)
    assert all(p <= 0.05 + 1e-12 for levels in found.levels[:3] for p in levels)
    plain = chance_levels(memorised(), passages, vocab_size=VOCAB)
    assert found.levels[3] == plain.levels[3]


def test_passages_of_no_form_are_asked_of_the_shaken_model_and_have_a_stranger_s_nll(monkeypatch):
    form = [[2, 3, 4, 5, 6, 7, 20 + i] for i in range(3)]
    free, other = [11, 12, 13, 14, 15, 16, 17], [21, 22, 19, 18, 1]
    asked = []

    def noisy(model, passages, *, nll, seed):
        asked.append((list(passages), nll))
        return [np.array([0.0, *np.linspace(-0.1, -2.0, len(p) - 1)]) for p in passages]

    monkeypatch.setattr(chance, "noisy_logprobs", noisy)
    model = memorised()
    found = chance_levels(model, [*form, free], vocab_size=VOCAB, more=[other], usual_nll=lambda: 2.5)
    assert asked == [([free, other], 2.5)]
    with monkeypatch.context() as patch:
        patch.setattr(chance, "FORM_SHARE", 0.0)
        plain = chance_levels(model, [*form, free], vocab_size=VOCAB, more=[other])
    assert found.levels[:3] == plain.levels[:3]  # of a form: from the others and from splices
    assert found.levels[3:] != plain.levels[3:]
    got = np.log(found.levels[3] + found.levels[4])
    states = np.r_[got[1 : len(free)], got[len(free) + 1 :]]
    assert -states.mean() == pytest.approx(2.5, abs=1e-6)
    assert (np.diff(got[1 : len(free)]) < 0).all()  # in the order of the shaken model
    never = chance_levels(model, [free, other], vocab_size=VOCAB, never=[[5, 3, 9, 2]], usual_nll=lambda: 9.0)
    assert asked[1][1] == pytest.approx(chance._nll(model, [[5, 3, 9, 2]]))
    assert never.nll == pytest.approx(asked[1][1], abs=1e-6)
    assert never.power == pytest.approx(1.0, abs=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(chance, "splice_logprobs", None)  # who has an NLL and no form asks for no splices
        same = chance_levels(model, [free, other], vocab_size=VOCAB, never=[[5, 3, 9, 2]])
    assert same.levels == never.levels
    del asked[2:]
    chance_levels(model, [free, other], vocab_size=VOCAB)
    spliced = splice_logprobs(model, [free, other], [free, other], seed=0)
    assert asked[2][1] == pytest.approx(-np.concatenate([x[1:] for x in spliced]).mean())
