"""The comparison's judgement by hand: means, collapse, who beats whom, and that the page and the tables say so."""

from __future__ import annotations

import math

import pytest

from eval.pareto import collapse, derived, dominates, front, means, verdicts
from eval.report.pareto import render_comparison, write_pages
from eval.report.pareto_text import document, latex, markdown, number, paper_table, sentences

from .test_report import read

GOOD = {
    "forget/exact": 0.02, "forget/exact_sampled": 0.1, "forget/discoverable": 0.3, "forget/bleu": 10.0,
    "forget/n_bleu": 90.0, "forget/true_token_p": 0.6, "forget/empty": 0.0, "forget/loop": 0.0, "forget/garbled": 0.0,
    "forget/distinct_2_ratio": 1.0, "forget/length_ratio": 0.8, "forget/output_nll": 1.0,
    "forget_holdout/exact": 0.1, "keep/exact": 0.9, "holdout/perplexity": 77.0, "holdout/accuracy": 0.3,
}  # fmt: skip
ORIGINAL = GOOD | {
    "forget/exact": 0.97, "forget/exact_sampled": 1.0, "forget/bleu": 99.0, "holdout/perplexity": 70.0,
    "never/bleu": 6.0, "never/true_token_p": 0.5, "never/length_ratio": 0.8,
}  # fmt: skip


def point(method="demem", kind="training", value=1.0, seed=0, size=64, *, is_default=True, **changes) -> dict:
    """A point with some numbers changed; ``forget__exact`` stands for "forget/exact"."""
    summary = {**(ORIGINAL if kind == "original" else GOOD), **{k.replace("__", "/"): v for k, v in changes.items()}}
    return {
        "method": method, "kind": kind, "knob": "" if kind == "original" else "beta", "value": value, "seed": seed,
        "size": size, "is_default": is_default, "summary": summary, "paper": {}, "meta": {"commit": "abc<b>"},
        "cost": {"seconds": 10.0, "flops": 2e9},
    }  # fmt: skip


def original(size: int = 64) -> dict:
    return point("original", "original", size=size)


def test_means_and_spreads_over_seeds():
    found = means([original(), point(seed=0, holdout__perplexity=77.0), point(seed=1, holdout__perplexity=84.0)])
    assert [m.method for m in found] == ["original", "demem"]
    mean = found[1]
    assert (mean.seeds, mean.label) == (2, "demem (beta 1)")
    assert mean.values["perplexity_ratio"] == pytest.approx(1.15)
    assert mean.spreads["perplexity_ratio"] == pytest.approx(0.1 / math.sqrt(2))
    assert mean.values["cost/flops"] == 2e9
    with pytest.raises(ValueError, match="no point of the original model for 32"):
        means([original(), point(size=32)])


def test_derived_numbers_by_hand():
    found = derived(GOOD | {"forget/bleu": 2.0}, ORIGINAL)
    assert found["floor_distance"] == pytest.approx(4.0)  # below chance is an error as well
    assert found["floor_distance_p"] == pytest.approx(0.1)
    assert found["gen_ppl"] == pytest.approx(math.e)
    assert found["fluency"] == 1.0  # as long as what the original writes on records it never saw
    assert derived(GOOD | {"forget/length_ratio": 0.2}, ORIGINAL)["fluency"] == pytest.approx(0.25)
    assert derived(GOOD | {"forget/empty": 0.4}, ORIGINAL)["fluency"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"forget/empty": 0.3}, ["empty"]),
        ({"forget/length_ratio": 0.1}, ["empty"]),
        ({"forget/loop": 0.5}, ["repetitive"]),
        ({"forget/distinct_2_ratio": 0.4, "forget/output_nll": 7.0}, ["repetitive", "garbled"]),
        ({"forget/garbled": 0.2}, ["garbled"]),
    ],
)
def test_collapse_by_its_thresholds(changes, broken):
    assert collapse(GOOD | changes) == broken


def test_a_majority_of_seeds_makes_a_collapse():
    rows = [point("ul", seed=s, forget__empty=float(s > 0)) for s in range(3)]
    assert means([original(), *rows])[1].collapsed == ("empty",)
    assert means([original(), *rows[:2]])[1].collapsed == ()


def pair(**changes) -> tuple:
    """A rival with some numbers changed, and DeMem."""
    found = means([original(), point(), point("npo", **changes)])
    return found[2], found[1]


def test_dominance_strict_and_weak():
    both = {"forget__exact_sampled": 0.05, "holdout__perplexity": 75.0}
    assert dominates(*pair(**both), is_strict=True)
    assert not dominates(*pair(**both, forget__loop=0.1))  # less fluent
    assert not dominates(*pair(**both, forget__empty=0.9))  # collapsed
    one = {"holdout__perplexity": 75.0}
    assert dominates(*pair(**one))
    assert not dominates(*pair(**one), is_strict=True)
    assert not dominates(*pair())  # equal in both
    assert not dominates(*pair(**one, forget__exact_sampled=0.2))


def test_the_front_and_the_verdict_follow_the_data():
    rivals = [
        point("npo", forget__exact_sampled=0.05, holdout__perplexity=75.0),
        point("ul", forget__exact=0.5, forget__exact_sampled=0.0, holdout__perplexity=70.0),  # has not forgotten
        point("memfree", "decoding", forget__exact_sampled=0.0, holdout__perplexity=70.0),
    ]
    found = means([original(), point(), *rivals])
    assert [m.method for m in front(found)] == ["npo"]
    verdict = verdicts(found)[0]
    assert [m.method for m in verdict.strict] == ["npo"]
    assert verdict.rivals == 1
    text = " ".join(sentences(found))
    assert "BEATEN by npo (beta 1) (sampled 5.0 % against 10.0 %, perplexity ratio 1.071 against 1.100" in text
    assert "BEATEN by memfree" in text  # told apart: a decoding defence
    assert "whoever holds the weights" in text
    safe = means([original(), point(), point("npo", forget__exact_sampled=0.2)])
    assert "not beaten by any of 1 points of a training-time baseline" in " ".join(sentences(safe))
    assert {m.method for m in front(safe)} == {"demem"}
    near = means([original(), point(), point("npo", holdout__perplexity=75.0, forget__loop=0.04)])
    assert verdicts(near)[0].weak == ()
    assert "With a fluency lower by at most 0.05 it would be by npo" in " ".join(sentences(near))
    tie = means([original(), point(), point("npo", holdout__perplexity=75.0)])
    assert "not beaten in both" in " ".join(sentences(tie))


def test_what_cannot_be_said_is_not_said():
    assert "DeMem was not among" in " ".join(sentences(means([original(), point("ul")])))
    early = means([original(), point(forget__exact=0.5), point("ul")])
    assert "with no value of its knob" in " ".join(sentences(early))
    alone = means([original(), point(), point("ul", forget__exact=0.9)])
    assert "no training-time baseline is at matched forgetting" in " ".join(sentences(alone))
    broken = means([original(), point(forget__empty=0.9), point("ul")])
    assert "has collapsed (empty)" in " ".join(sentences(broken))


def test_numbers_as_a_reader_wants_them():
    assert [number(v, k) for v, k in ((0.125, "share"), (None, "share"), (1.02345, "ratio"), (2.34e9, "size"))] == [
        "12.5 %", "-", "1.023", "2.3e+09",
    ]  # fmt: skip
    assert number(3e6, "score") == "3e+06"


def test_the_paper_s_layout_has_its_sizes():
    rows = paper_table(means([original(32), original(64), point(size=32), point(size=64), point("ul", size=32)]))
    assert rows[0][1:5] == ["N-BLEU (32)", "PPL (32)", "GEN-PPL (32)", "Acc. (32)"]
    assert [h for h in rows[0] if h.startswith("N-BLEU")] == [f"N-BLEU ({n})" for n in (32, 64, 128, 256)]
    assert rows[2][:5] == ["demem", "90.0", "77.0", "2.7", "30.0 %"]
    assert rows[3][5:9] == ["-"] * 4
    assert latex([["a_b", "±5 %"]]).splitlines()[2] == r"a\_b & $\pm$5 \% \\"
    assert markdown([["a|b", "c"], ["1", "2"]]) == "| a\\|b | c |\n|---|---|\n| 1 | 2 |"


def test_the_page_is_whole_and_says_what_the_text_says(tmp_path):
    points = [original(), *(point(seed=s, holdout__perplexity=77.0 + s) for s in range(2))]
    points += [point("ul", value=v, is_default=v == 1.0, forget__empty=0.9, holdout__perplexity=1e6) for v in (1.0, 2)]
    page = render_comparison(means(points), points)
    reader = read(page)
    assert reader.links == []
    assert "script" not in reader.tags
    assert reader.tags.count("svg") == 2 * 4 + 2  # four kinds of forgetting against two of utility; the chance floor
    assert page.count('class="cross"') > 0
    assert page.count('class="ring"') > 0
    assert page.count('class="error"') > 0
    assert "abc&lt;b&gt;" in page
    assert "not beaten" in page or "nothing to compare" in page
    write_pages(tmp_path, points, order=["original", "demem", "ul"])
    assert {p.name for p in tmp_path.iterdir()} == {"compare.html", "compare.md", "compare.tex"}
    text = (tmp_path / "compare.md").read_text()
    assert text == document(means(points))
    assert "collapsed: empty" in text
    assert "± " in text
