"""Who beats whom, on made-up passages: the words by hand, the bootstrap by plain loops, and what is said of it."""

from __future__ import annotations

import copy
import math
from statistics import fmean

import numpy as np
import pytest

from eval.beats import RESAMPLES, Contest, Difference, Duel, Field, Sample, difference
from eval.intervals import draw_counts
from eval.margins import AREAS, COMPARED, Compared
from eval.pareto import TARGET, means
from eval.report.comparison.document import document
from eval.report.comparison.page import render_comparison
from eval.report.comparison.verdict import clean_table, sentences, standings
from eval.values import DIGITS, check_values, passage_values
from tests.eval.test_pareto import original, point

BY_NAME = {q.name: q for q in COMPARED}
MA, KEEP, SECRET = BY_NAME["forget/ma_suffix"], BY_NAME["keep/exact"], BY_NAME["forget/secret_emitted"]
COUNT = 60


def record(group: str, i: int, **changes: float | None) -> dict:
    """A passage as an evaluation has it. Passages differ in how hard they are, for every model alike."""
    hard = (i * 37 % 11) / 100
    numbers = {
        "exact": 0.0, "exact_sampled": 0.0, "secret_emitted": 0.0, "verbatim_run": 3.0, "ma_suffix": 0.45 + hard,
        "extraction_strength": 0.02, "longest_run": 6.0, "nll_suffix": 3.0 + hard, "empty": 0.0, "loop": 0.0,
        "garbled": 0.0, "distinct_2": 1.0, "distinct_2_truth": 1.0, "length": 50.0, "length_truth": 50.0,
        "non_words": 0.0, "output_nll": 2.0, "output_order": 1.0,
    }  # fmt: skip
    return {"id": f"{group}-{i}", "group": group, **numbers, **changes}


def with_values(one: dict, *, forget: dict | None = None, keep: float = 1.0, nll: float = 40.0, **never: float) -> dict:
    """A point with passages. ``forget``: values, or functions of the passage's number and its record."""
    rows = [record("forget", i) for i in range(COUNT)] + [record("never", i, **never) for i in range(COUNT)]
    for i, row in enumerate(rows[:COUNT]):
        row |= {name: value(i, row) if callable(value) else value for name, value in (forget or {}).items()}
    kept = [
        record("keep", i, exact=float(i < keep * COUNT), exact_sampled=float(i < keep * COUNT)) for i in range(COUNT)
    ]
    texts = [(nll + i % 7, 20) for i in range(COUNT)]
    summary = {"never/nll_suffix": 3.0, "never/truth_order": 1.0, "never/length_ratio": 1.0}
    found = {**one, "values": passage_values(rows + kept, texts)}
    return {**found, "summary": one["summary"] | summary} if one["kind"] == "original" else found


ORIGINAL = with_values(original(), forget={"exact": 1.0, "ma_suffix": 1.0, "secret_emitted": 1.0})
GOOD = with_values(point("distil"))


def duel(one: dict | list, other: dict | list, twins: tuple = ()) -> Duel:
    one, other = (x if isinstance(x, list) else [x] for x in (one, other))
    return Contest(Field(ORIGINAL, twins)).duel(one, other)


def words(found: Duel) -> dict[str, str]:
    return {d.quantity.name: d.word for d in found.differences}


@pytest.mark.parametrize(
    ("gain", "low", "high", "word"),
    [
        (0.04, 0.02, 0.06, "better"),
        (-0.04, -0.06, -0.02, "worse"),
        (0.01, -0.02, 0.02, "same"),
        (0.02, 0.01, 0.025, "same"),  # a difference, and too small to count
        (0.02, 0.01, 0.04, "unsure"),  # it may be larger than the margin
        (0.04, -0.01, 0.09, "unsure"),
        (0.0, -0.05, 0.05, "unsure"),
    ],
)
def test_the_word_of_a_difference_by_hand(gain, low, high, word):
    assert Difference(MA, 0.0, 0.0, gain, low, high).word == word


def test_every_area_has_quantities_and_every_margin_a_reason():
    assert {q.area for q in COMPARED} == set(AREAS)
    assert all(q.margin > 0 and q.reason for q in COMPARED)


def test_a_better_method_beats_and_the_other_is_beaten():
    worse = with_values(point("npo"), forget={"ma_suffix": lambda i, row: row["ma_suffix"] + 0.3, "longest_run": 20.0})
    found = duel(GOOD, worse)
    assert found.outcome == "beats"
    assert duel(worse, GOOD).outcome == "beaten"
    assert words(found)["forget/ma_suffix"] == "better"
    assert words(found)["forget/longest_run"] == "better"
    assert words(found)["forget/nll_suffix"] == "same"
    assert found.missing == ()


def test_a_pair_of_unlike_strengths_is_mixed_and_equals_are_told_as_such():
    assert duel(GOOD, with_values(point("npo"), forget={"exact_sampled": 1.0}, keep=0.2)).outcome == "beats"
    cheap = with_values(point("npo"), forget={"ma_suffix": 0.9}, nll=36.0)  # deeper, and harmful
    assert duel(GOOD, cheap).outcome == "mixed"
    same = duel(GOOD, GOOD | {"method": "npo"})
    assert same.outcome == "unsure"  # 0 of 60 and 0 of 60: a difference of 5 points may hide
    assert {d.word for d in same.differences if not d.quantity.is_share} == {"same"}
    assert {d.word for d in same.differences if d.quantity.is_share} == {"unsure"}


def test_the_bootstrap_is_that_of_plain_loops():
    """Distances from never's mean, with trainings drawn as well; perplexity; keep: draw by draw."""
    seeds = [with_values(point("npo", seed=s), forget={"ma_suffix": lambda i, row, s=s: 0.5 + 0.1 * s + i % 5 / 50},
                         keep=0.8 - s / 10, nll=42.0 + s) for s in range(2)]  # fmt: skip
    held = Field(ORIGINAL)

    def counts(group: str, count: int = COUNT) -> np.ndarray:
        return draw_counts(np.arange(count), count, RESAMPLES, rng=np.random.default_rng([0, *group.encode()]))

    drawn = {group: counts(group) for group in ("forget", "never", "keep", "texts")}
    trainings = counts("npo 1.0", 2)
    for name, group in (("forget/ma_suffix", "forget"), ("keep/exact", "keep"), ("perplexity_ratio", "texts")):
        found = held.sample(seeds, BY_NAME[name])
        assert found is not None
        for r in (0, 7, 3999):
            each = []
            for one in seeds:
                own = one["values"][group]
                if name == "perplexity_ratio":
                    before = ORIGINAL["values"]["texts"]["nll"]
                    nll = sum(c * (a - b) for c, a, b in zip(drawn[group][r], own["nll"], before, strict=True))
                    each.append(math.exp(nll / sum(c * t for c, t in zip(drawn[group][r], own["tokens"], strict=True))))
                    continue
                column = own[name.partition("/")[2]]
                mean = sum(c * x for c, x in zip(drawn[group][r], column, strict=True)) / COUNT
                if group == "forget":
                    never = one["values"]["never"]["ma_suffix"]
                    mean = abs(mean - sum(c * x for c, x in zip(drawn["never"][r], never, strict=True)) / COUNT)
                each.append(mean)
            expected = sum(c * x for c, x in zip(trainings[r], each, strict=True)) / 2
            assert found.draws[r] == pytest.approx(expected)


def test_pairs_see_what_two_separate_samples_do_not():
    """Passages differ far more from each other than the methods do, and the difference is still sure."""
    wide = {"nll_suffix": lambda i, row: 3.0 + i / 10}
    one = with_values(point("distil"), forget=wide)
    other = with_values(point("npo"), forget={"nll_suffix": lambda i, row: 3.4 + i / 10 + i % 3 / 100})
    found = next(d for d in duel(one, other).differences if d.quantity.name == "forget/nll_suffix")
    assert found.word == "better"
    assert found.high - found.low < 0.02
    assert np.std([3.0 + i / 10 for i in range(COUNT)]) / math.sqrt(COUNT) > 0.2


def test_the_exact_twin_is_the_target_where_it_was_measured():
    """Two models as deep as each other by their own never-trained passages; one stands where the twin does."""
    twin = with_values(point(TARGET, "retraining"))
    near = with_values(point("distil"))
    far = with_values(point("npo"), forget={"ma_suffix": 0.1}, ma_suffix=0.1)  # it knows nothing at all any more
    assert words(duel(near, far))["forget/ma_suffix"] == "same"
    assert words(duel(near, far, (twin,)))["forget/ma_suffix"] == "better"
    assert words(duel(far, near, (twin,)))["forget/ma_suffix"] == "worse"


def test_one_training_far_off_takes_the_sureness_away():
    good = [with_values(point("distil", seed=s)) for s in range(3)]
    steady = [with_values(point("npo", seed=s), forget={"ma_suffix": 0.62}) for s in range(3)]
    shaky = [with_values(point("npo", seed=s), forget={"ma_suffix": 0.5 + 0.18 * (s == 2)}) for s in range(3)]
    assert words(duel(good, steady))["forget/ma_suffix"] == "better"
    assert words(duel(good, shaky))["forget/ma_suffix"] == "unsure"


def test_a_share_of_none_has_an_interval():
    none = Sample(0.0, np.zeros(RESAMPLES), np.zeros(20))
    found = difference(KEEP, none, none, level=0.95)
    assert (found.low, found.high) == (pytest.approx(-0.168, abs=1e-3), pytest.approx(0.168, abs=1e-3))
    assert found.word == "unsure"
    many = Sample(0.0, np.zeros(RESAMPLES), np.zeros(2000))
    assert difference(KEEP, many, many, level=0.95).word == "same"


def test_passages_without_a_secret_do_not_count():
    some = {"secret_emitted": lambda i, row: None if i % 2 else 1.0}
    none = {"secret_emitted": lambda i, row: None if i % 2 else 0.0}
    found = duel(with_values(point("distil"), forget=none), with_values(point("npo"), forget=some))
    shown = next(d for d in found.differences if d.quantity is SECRET)
    assert (shown.one, shown.other, shown.word) == (0.0, 1.0, "better")


def test_the_writing_is_the_tables_own():
    broken = with_values(point("npo"), forget={"non_words": 0.4, "loop": lambda i, row: i % 2 / 2})
    sample = Field(ORIGINAL).sample([broken], BY_NAME["fluency"])
    assert sample is not None
    assert sample.value == pytest.approx(0.6)
    assert words(duel(GOOD, broken))["fluency"] == "better"
    assert Field(ORIGINAL).sample([GOOD], BY_NAME["fluency"]).value == pytest.approx(1.0)


def test_other_passages_and_older_points_are_not_measured():
    assert duel(GOOD, point("npo")).outcome == "not measured"
    other = copy.deepcopy(GOOD) | {"method": "npo"}
    other["values"]["forget"]["of"] = "others"
    assert "suffix accuracy" in duel(GOOD, other).missing
    assert "records to keep" not in duel(GOOD, other).missing


def test_values_are_short_and_hold_no_ids():
    found = passage_values([record("forget", 0, ma_suffix=1 / 3, exact=1.0, nll_suffix=math.inf)], [(3.25, 2)])
    assert found["forget"]["ma_suffix"] == [round(1 / 3, DIGITS)]
    assert repr(found["forget"]["exact"]) == "[1]"
    assert found["forget"]["nll_suffix"] == [None]
    assert "forget-0" not in str(found)
    check_values(found, "point")
    assert passage_values([record("forget", 0)], [(math.nan, 2)]).keys() == {"forget"}
    assert passage_values([]) == {}


def test_the_front_and_the_sentences_follow_the_duels():
    deep = {"ma_suffix": lambda i, row: row["ma_suffix"] + 0.3}
    points = [
        ORIGINAL,
        with_values(point("demem"), forget=deep),
        GOOD,
        with_values(point("npo"), forget=deep, keep=0.5),
        with_values(point("ul", forget__empty=0.9), nll=1.0),
        with_values(point("memfree", "decoding"), forget=deep),
    ]
    found = means(points)
    assert [m.method for m in found if m.is_front] == ["distil"]
    text = " ".join(sentences(found))
    assert (
        "against methods that train. BEATEN by distil (beta 1) (worse in suffix accuracy 30.0 % against 0.0 %" in text
    )
    assert "Better than npo (beta 1) (better in records to keep 100.0 % against 50.0 %" in text
    assert "Collapsed, so beating nobody: ul (beta 1)." in text
    assert "against decoding defences. Cannot tell from memfree" in text
    rows = {row[0]: row[1:] for row in standings(found, 64)}
    assert rows["row against column"] == ["demem", "distil", "npo", "ul", "memfree"]
    assert rows["distil"] == ["better", "", "better", "it collapsed", "better"]
    assert rows["demem"] == ["", "worse", "better", "it collapsed", "cannot tell"]
    assert rows["ul"][0] == "collapsed"
    page, told = render_comparison(found, points), document(found)
    assert "Who beats whom at the defaults, 64 records" in page
    assert "| demem |  | worse | better | it collapsed | cannot tell |" in told
    assert "- suffix accuracy (depth, distance from the target): 3.0 points; three points, the goal of" in told
    assert 'class="ring"' in page


def test_which_point_is_clean_stands_in_a_table():
    numbers = {"ma_suffix": 0.9, "extraction_strength": 0.5, "nll_suffix": 0.2}
    intervals = {f"forget/{name}": [value - 0.05, value + 0.05] for name, value in numbers.items()}
    intervals |= {
        "never/ma_suffix": [0.4, 0.5],
        "never/extraction_strength": [0.01, 0.03],
        "never/nll_suffix": [2.9, 3.1],
    }
    never = {"never/ma_suffix": 0.45, "never/extraction_strength": 0.02, "never/nll_suffix": 3.0}
    summary = {f"forget/{name}": value for name, value in numbers.items()} | never
    points = [original(), *({**point(seed=s), "intervals": intervals} for s in range(2))]
    for one in points[1:]:
        one["summary"] = one["summary"] | summary
    head, row = clean_table(means(points))
    assert head[3:5] == ["verdict", "memory left"]
    assert row[:4] == ["demem (beta 1)", "64", "2", "not clean in 2"]
    assert row[4] == f"{100 * fmean([0.45 / 0.55, 0.48 / 0.98, 2.8 / 3.0]):.1f} %"
    assert "suffix accuracy (2)" in row[5]
    assert "membership AUC" in row[6]
    assert "### Clean, or not" in document(means(points))


def test_a_quantity_names_what_it_is():
    assert isinstance(MA, Compared)
    assert len({q.name for q in COMPARED}) == len(COMPARED)
