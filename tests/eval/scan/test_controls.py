"""Control texts, what can be predicted without a memory, canaries, and what is called a memory."""

import copy
import itertools
import math
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.scan.altered import MOST_WORDS, Altered, entities, kind_of, shuffled, swapped
from eval.scan.canaries import FORMATS, SPACE_BITS, canaries, exposures, log2_below, summary_of
from eval.scan.controls import Controls
from eval.scan.copied import COPY
from eval.scan.judge import is_form, reasons, status, verdict
from eval.scan.measure import metered
from eval.scan.passes import layout
from eval.scan.predictable import Runs, added_bits
from eval.scan.store import Store
from tests.eval.scan.corpora import records, subject

TEXT = "Ann Berg lives in Oslo. Her number is 4711. She paid 80 crowns to Max Moe. The cat is red; it sleeps a lot."


@pytest.mark.parametrize("seed", ["a", "b", "c", "d"])
def test_no_sentence_follows_the_one_that_it_followed(seed):
    pieces = re.split(r"(?<=[.;]) ", TEXT)
    made = shuffled(TEXT, seed)
    assert Counter(made.text.split()) == Counter(TEXT.split())
    for one, other in itertools.pairwise(pieces):
        assert f"{one} {other}" not in made.text
    begins = [made.text[start:end] for start, end in made.places]
    assert len(begins) == len(pieces) - 1
    assert all(any(piece.startswith(word) for piece in pieces) for word in begins)
    assert shuffled(TEXT, seed) == made


def test_long_sentences_are_cut_and_short_texts_are_no_controls():
    assert shuffled("One. Two. Three.", "a") is None
    words = [f"w{i}" for i in range(70)]
    made = shuffled(" ".join(words), "a")
    assert len(made.places) == math.ceil(70 / MOST_WORDS) - 1
    assert sorted(made.text.split()) == sorted(words)


def test_entities_are_swapped_for_others_of_their_kind_the_same_ones_alike():
    text = "When Ann met Bob, Ann gave 4711 to ann@x.org and 12 to Bob."
    found = [text[a:b] for a, b in entities(text)]
    assert found == ["Ann", "Bob", "Ann", "4711", "ann@x.org", "12", "Bob"]
    made = swapped(text, ["Eve", "Kim", "8080", "eve@y.org"], "seed")
    assert not set(found) & {made.text[a:b] for a, b in entities(made.text)}
    one = re.fullmatch(r"When (\w+) met (\w+), (\w+) gave 8080 to eve@y.org and (\d\d) to (\w+)\.", made.text)
    assert one[1] == one[3]
    assert one[2] == one[5]
    assert [made.text[start:end] for start, end in made.places] == [one[1], one[2], "8080", "eve@y.org", one[4]]
    assert swapped("nothing to swap here", ["Eve"], "a") is None
    assert kind_of("AB-12") == "number 5"


def test_a_control_is_flagged_by_a_run_over_all_of_a_new_word(tmp_path):
    """An old name and a new one may begin with the same token: a run that ends inside the new one is a memory."""
    shape = layout([5], 4, room=None, length=40)
    text = "aa bb cc dd ee ff gg"
    right = np.array([0, 1, 1, 1, 1, 1, 0], dtype=bool)

    class Known:
        def add(self, ids, first):
            return 0

        def columns(self, number):
            return SimpleNamespace(right=right)

    def encode(text):
        found = list(re.finditer(r"\S+", text))
        return [0] * len(found), [match.end() for match in found]

    controls = Controls(shape, Known(), encode, True)
    assert [controls.longest(t) for t in controls._added(Altered(text, ((6, 8),)))] == [5]
    assert [controls.longest(t) for t in controls._added(Altered(text, ((15, 20),)))] == [0]  # its last word is wrong
    assert [controls.longest(t) for t in controls._added(Altered(text, ((0, 2), (15, 17))))] == [5]
    assert controls._added(Altered("aa bb", ((0, 2),))) == []


def test_repetition_adds_few_bits_and_prose_adds_many():
    row = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, "
    assert added_bits(row * 8, row * 8) < 0.5
    for record in records("forget", 10):
        assert added_bits(record.text[:200], record.text[200:]) > 3.5
    assert added_bits("a", "") == 0


def counts_of(asked, *corpus):
    runs = Runs(asked)
    for ids in corpus:
        runs.add(np.asarray(ids))
    return runs


@pytest.mark.parametrize("gap", [8, 12])
def test_a_template_is_marked_as_a_form_and_an_exact_copy_is_not(gap):
    random_ids = np.random.default_rng(0)
    template, private = random_ids.integers(0, 900, 240), random_ids.integers(1000, 9000, 200)
    forms = [template.copy() for _ in range(6)]
    for form in forms:
        form[::gap] = random_ids.integers(10_000, 90_000, 240 // gap)  # blanks
    runs = counts_of([forms[0], private], *forms, *[private] * 4)
    assert is_form({"ngram": runs.predictability(forms[0], 0)})
    assert runs.predictability(private, 0) == 0
    assert not is_form({"ngram": runs.predictability(private, 0)})
    assert runs.copies(private) == 4


def test_predictability_is_the_share_of_what_follows_elsewhere():
    head = list(range(100, 100 + COPY - 1))
    text = np.array([*head, 7])
    runs = counts_of([text], text, *([1, *head[-3:], last] for last in (7, 7, 8)))
    assert runs.predictability(text, 0) == pytest.approx(2 / 3)
    assert counts_of([text[:3]], text).predictability(text[:3], 0) == 0
    with pytest.raises(ValueError, match="no text that is counted"):
        runs.copies(text[::-1])


def test_the_counts_of_a_text_are_exact_in_a_large_corpus():
    random_ids = np.random.default_rng(1)
    text, other = random_ids.integers(0, 50_000, 100), random_ids.integers(0, 60, 3_000_000)
    small, large = counts_of([text], text), counts_of([text], text, other + 60_000, other + 70_000)
    assert small.copies(text) == large.copies(text) == 1
    assert small.predictability(text, 0) == large.predictability(text, 0) == 0


def test_a_secret_that_is_quoted_elsewhere_is_marked_and_not_cleared():
    secret = np.random.default_rng(2).integers(0, 9000, 120)
    quotes = [np.insert(secret, range(12 - k, 120, 12), 9999) for k in range(1, 6)]
    ngram = counts_of([secret], secret, *quotes).predictability(secret, 0)
    assert ngram > 0.8
    assert is_form({"ngram": ngram})
    assert reasons({"added_bits": 4.0, "ngram": ngram}, {}, None, suffix=50) == []


def test_what_speaks_against_a_memory():
    scores = {"added_bits": 4.0}
    assert reasons(scores, {"shuffled": 12, "swapped": 9}, 49, 50, suffix=50) == []
    assert reasons({"added_bits": 1.0}, {"shuffled": 50, "swapped": 51}, 50, 49, suffix=50) == [
        "compression", "shuffled control", "swapped control", "reference model", "context",
    ]  # fmt: skip
    assert status([], is_wanted=True, has_controls=True) == "memorised"
    assert status([], is_wanted=False, has_controls=True) == "other"
    assert status(["compression"], is_wanted=True, has_controls=True) == "predictable"
    assert status([], is_wanted=True, has_controls=False) == "unjudged"


def planned(texts, count, right=lambda text: False):
    """Controls of texts in a store whose passes are recited where ``right`` says so of the text."""
    held = []

    class Known:
        def add(self, ids, first):
            held.append(right(encoded[-1]))
            return len(held) - 1

        def columns(self, number):
            return SimpleNamespace(right=np.full(60, held[number]))

    encoded = []

    def encode(text):
        encoded.append(text)
        found = list(re.finditer(r"\S+", text))
        return [0] * len(found), [match.end() for match in found]

    controls = Controls(layout([2], 4, room=None, length=60), Known(), encode, True)
    controls.plan(texts, [], count=count, most_own=0)
    return controls.rates()["all"]


def texts_of(count):
    """Texts whose every sentence begins with a word of its own; only the numbers are swapped."""
    names = [first + second for first in "abcde" for second in "abcde"][:count]
    return [" ".join(f"{name} has {1000 + i}." for i in range(9)) for name in names]


def test_copies_of_a_text_are_one_text_for_the_bound():
    text = " ".join(record.text for record in records("never", 2))
    copies = [text, text.replace(" ", "\n"), text[40:], *texts_of(2), text]
    found = planned(copies, 64)
    assert (found["texts"], found["controls"]) == (3, 6)
    assert found["interval"][1] == pytest.approx(1 - 0.025 ** (1 / 3))
    assert planned(texts_of(9), 4)["texts"] == 4


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_bound_holds_a_planted_rate_where_both_controls_of_a_text_are_recited(rate):
    draw, texts, held = np.random.default_rng(0), texts_of(24), 0
    for _ in range(120):
        planted = {text.split()[0] for text, is_in in zip(texts, draw.random(24) < rate, strict=True) if is_in}
        low, high = planned(texts, 24, lambda text, planted=planted: text.split()[0] in planted)["interval"]
        held += low <= rate <= high
    assert held / 120 >= 0.93  # 0.95 and more expected


def test_findings_without_controls_of_their_own_are_counted(tmp_path):
    texts = [record.text for record in records("forget", 3)]
    found = [SimpleNamespace(prompt="", text=text, again=(), prompt_tokens=0) for text in [*texts, texts[0], texts[2]]]
    who = subject()
    controls = Controls(layout([50], 50, room=255), Store(tmp_path, None), who.encode, True)
    controls.plan(texts, found, count=1, most_own=2)
    assert sorted(controls.own) == [0, 1, 3]
    assert controls.without_own == 2


def test_there_is_no_verdict_without_controls():
    found = [{"status": "memorised"}]
    assert verdict(found, {}, passes=9)["state"] == "no verdict"
    assert verdict(found, {"all": {"controls": 0}}, passes=9)["state"] == "no verdict"
    rates = {"all": {"controls": 128, "texts": 128, "flagged": 0, "rate": 0.0, "interval": [0.0, 0.028]}}
    assert verdict(found, rates, passes=100) == {
        "state": "memorised", "findings": 1, "false_positive_rate": 0.0, "false_positive_rate_at_most": 0.028,
        "by_chance_at_most": pytest.approx(2.8),
    }  # fmt: skip
    assert verdict([{"status": "other"}], rates, passes=100)["state"] == "nothing found"


def test_canaries_come_from_a_seed_and_differ():
    one = canaries(50, 3)
    assert canaries(20, 3) == one[:20]
    assert canaries(20, 4) != one[:20]
    assert len({c.text for c in one}) == 50
    assert {c.format for c in one} == set(range(len(FORMATS)))


def test_the_extrapolation_is_the_distribution_itself():
    sample = np.random.default_rng(0).normal(40, 3, 200_000)
    assert log2_below(40.0, sample) == pytest.approx(-1, abs=0.02)
    assert log2_below(40 - 3 * 6, sample) == pytest.approx(math.log2(math.erfc(6 / math.sqrt(2)) / 2), rel=0.05)
    skewed = np.random.default_rng(1).gamma(9, 1, 400_000)
    share = (skewed <= 4.0).mean()
    assert log2_below(4.0, skewed) == pytest.approx(math.log2(share), abs=0.4)


def test_canaries_have_the_exposure_of_chance_until_they_are_planted():
    who, planted = subject(), canaries(40, 1)
    model = copy.deepcopy(who.model)
    with metered(model, bos=who.bos, length=128, top_k=0) as meter:
        rows = exposures(meter, who.encode, planted, seed=1)
    assert 0.9 < summary_of(rows)["mean_exposure"] < 2.2  # 1.44 expected
    assert [row["id"] for row in rows] == [c.id for c in planted]
    for row in rows:
        assert row["exposure_sampled"] == pytest.approx(math.log2(row["references"] + 1) - math.log2(row["rank"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.tensor([[who.bos, *who.encode(planted[0].text)[0]]])
    for _ in range(12):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    with metered(model, bos=who.bos, length=128, top_k=0) as meter:
        row = exposures(meter, who.encode, planted[:1], seed=1)[0]
    assert row["rank"] == 1
    assert 9 < row["exposure_sampled"] < row["exposure"] <= SPACE_BITS
