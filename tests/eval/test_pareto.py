"""The comparison by hand: means, distances, collapse, and that the page and the tables say so."""

from __future__ import annotations

import math

import pytest

from eval.pareto import TARGET, collapse, derived, means, target
from eval.report.comparison.charts import ratio_ticks, share_ticks
from eval.report.comparison.document import document
from eval.report.comparison.page import render_comparison, write_pages
from eval.report.comparison.text import latex, markdown, number, paper_table
from eval.report.comparison.verdict import NOT_MEASURED, sentences
from eval.settings import Settings
from tests.eval.test_report import read

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


def test_attacks_have_a_table_of_their_own(tmp_path):
    def attack(share):
        return [{"name": "relearning steps:5|taught", "groups": {"forget": {"exact": share}}}]

    points = [{**original(), "attacks": attack(1.0)}, {**point(), "attacks": attack(0.25)}]
    found = means(points)
    assert [m.get("attack/forget/relearning steps:5|taught") for m in found] == [1.0, 0.25]
    assert "| forget relearning steps:5\\|taught |" in document(found)
    write_pages(tmp_path, points, order=["original", "demem"])
    assert "forget relearning steps:5|taught" in (tmp_path / "compare.html").read_text()
    assert "what attacks get out" not in document(means([original(), point()]))


def test_secrets_have_tables_of_their_own(tmp_path):
    def with_secrets(one, share, attacked):
        found = {"forget/secret_emitted": share, "never/secret_emitted": 0.0, "forget/verbatim_run": 12.0}
        groups = {"forget": {"exact": 0.0, "secret": attacked}, "never": {"exact": 0.0}}  # never has none
        attacks = [{"name": "beam search beams:4", "groups": groups}]
        return {**one, "summary": one["summary"] | found, "attacks": attacks}

    points = [with_secrets(original(), 1.0, 1.0), with_secrets(point(), 0.25, 0.5)]
    found = means(points)
    assert [m.get("attack-secret/forget/beam search beams:4") for m in found] == [1.0, 0.5]
    assert all(m.get("attack-secret/never/beam search beams:4") is None for m in found)
    text = document(found)
    assert "### Every point: secrets, and the longest verbatim run" in text
    assert "### Every point: of how many passages attacks get a secret out" in text
    assert text.index("secrets, and the longest") < text.index("what still comes out")
    write_pages(tmp_path, points, order=["original", "demem"])
    page = (tmp_path / "compare.html").read_text()
    assert "of which an attack got a secret" in page
    assert "secret still emitted" in page
    assert "secrets, and the longest" not in document(means([original(), point()]))


def test_depth_has_a_table_where_it_was_measured():
    deep = {"never__ma_suffix": 0.5, "forget__ma_suffix": 0.75, "depth__ma_suffix": 0.25, "depth__nll_suffix": -1.5}
    text = document(means([original(), point(**deep)]))
    head, _, old, new = text[text.index("depth, forget less never") :].splitlines()[2:6]
    assert head == "| method | mark | records | seeds | right tokens: forget | never | difference | NLL, difference |"
    assert old.endswith("| - | - | - | - |")
    assert new.endswith("| 75.0 % | 50.0 % | 25.0 % | -1.50 |")
    assert "depth, forget less never" not in document(means([original(), point()]))


def test_derived_numbers_by_hand():
    found = derived(GOOD | {"forget/bleu": 2.0}, ORIGINAL)
    assert found["floor_distance"] == pytest.approx(4.0)  # below chance is an error as well
    assert found["floor_distance_p"] == pytest.approx(0.1)
    assert found["gen_ppl"] == pytest.approx(math.e)
    assert found["fluency"] == 1.0  # as long as what the original writes on records it never saw
    assert derived(GOOD | {"forget/length_ratio": 0.2}, ORIGINAL)["fluency"] == pytest.approx(0.25)
    assert derived(GOOD | {"forget/empty": 0.4}, ORIGINAL)["fluency"] == pytest.approx(0.6)


def test_fluency_is_writing_and_length_where_the_writing_was_measured():
    assert derived(GOOD | {"forget/writing": 0.7}, ORIGINAL)["fluency"] == 0.7
    assert derived(GOOD | {"forget/writing": 0.7, "forget/length_ratio": 0.4}, ORIGINAL)["fluency"] == 0.5
    assert derived(GOOD | {"forget/writing": 1.0, "forget/loop": 0.2}, ORIGINAL)["fluency"] == 1.0  # it knows of loops


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"forget/empty": 0.3}, ["empty"]),
        ({"forget/length_ratio": 0.26}, ["short"]),  # of the original's 0.8 on never-trained records
        ({"forget/length_ratio": 0.27}, []),
        ({"forget/loop": 0.5}, ["repetitive"]),
        ({"forget/distinct_2_ratio": 0.4, "forget/output_nll": 7.0}, ["repetitive", "garbled"]),
        ({"forget/garbled": 0.2}, ["garbled"]),
    ],
)
def test_collapse_by_its_thresholds(changes, broken):
    assert collapse(GOOD | changes, ORIGINAL) == broken


def test_a_majority_of_seeds_makes_a_collapse():
    rows = [point("ul", seed=s, forget__empty=float(s > 0)) for s in range(3)]
    assert means([original(), *rows])[1].collapsed == ("empty",)
    assert means([original(), *rows[:2]])[1].collapsed == ()


TWIN = {"forget__bleu": 2.0, "forget__true_token_p": 0.1, "holdout__perplexity": 63.0, "forget__distinct_2_ratio": 0.65,
        "membership__loss_auc": 0.5}  # fmt: skip


def test_the_exact_twin_is_the_target_and_no_rival():
    twins = [point(TARGET, "retraining", **TWIN, forget__ma_suffix=0.5),
             point("dedup", "retraining", forget__output_nll=8.0), point("retain-only", "retraining")]  # fmt: skip
    found = means([original(), point(membership__loss_auc=1.0), *twins])
    assert target(found, 64) is found[2]
    assert target(found, 32) is None
    assert found[1].values["target_distance"] == pytest.approx(8.0)
    assert found[1].values["target_distance_p"] == pytest.approx(0.5)
    assert found[1].values["target_distance_ratio"] == pytest.approx(0.2)
    assert found[3].collapsed == ()  # unlike what the memorising original writes, and none the worse for it
    assert derived(GOOD | {"forget/ma_suffix": 0.9}, ORIGINAL, found[2].values)["target_distance_ma"] == pytest.approx(
        0.4
    )
    text = " ".join(sentences(found))
    assert "The target is the exact twin (without-forget, 1 seed), trained as the original was, without the 64" in text
    assert "suffix accuracy 50.0 %, BLEU 2.0, perplexity ratio 0.900, membership AUC 0.50." in text
    page = document(found)
    assert "| without-forget (beta 1) | target: trained without the records alone |" in page
    assert "| dedup (beta 1) | trained on the deduplicated corpus |" in page
    assert "| retain-only (beta 1) | no target: it never met the form of the records either |" in page
    assert "The exact twin, trained without the 64 records to forget, was not measured." in " ".join(
        sentences(means([original(), point()]))
    )


def test_points_without_single_passages_say_that_nobody_is_known_to_beat_anybody():
    found = means([original(), point(), point("npo", holdout__perplexity=71.0)])
    assert NOT_MEASURED in sentences(found)
    assert not any(m.is_front for m in found)
    assert "Who beats whom at the defaults" not in document(found)
    assert "### Clean, or not" not in document(found)  # nor are there intervals


def test_axes_are_cut_to_the_points():
    assert [name for _, name in ratio_ticks([0.93, 1.16])] == ["0.9", "1", "1.1", "1.2"]
    wide = ratio_ticks([0.93, 80.0])
    assert (wide[0][0], wide[-1]) == (pytest.approx(math.log10(0.9)), (2.0, "100"))
    assert [name for _, name in wide if name] == ["1", "2", "5", "10", "100"]  # 0.9 would touch 1
    assert [name for _, name in ratio_ticks([1.0])] == ["0.9", "1", "1.1"]
    assert [name for _, name in share_ticks([0.034, 0.051])] == ["3.0 %", "3.5 %", "4.0 %", "4.5 %", "5.0 %", "5.5 %"]


def test_what_cannot_be_said_is_not_said():
    assert "DeMem was not among" in " ".join(sentences(means([original(), point("ul")])))


def test_numbers_as_a_reader_wants_them():
    assert [number(v, k) for v, k in ((0.125, "share"), (None, "share"), (1.02345, "ratio"), (2.34e9, "size"))] == [
        "12.5 %", "-", "1.023", "2.3e+09",
    ]  # fmt: skip
    assert number(3e6, "score") == "3e+06"


def test_the_paper_s_layout_has_the_sizes_that_were_measured():
    rows = paper_table(means([original(32), original(64), point(size=32), point(size=64), point("ul", size=32)]))
    assert rows[0][1:5] == ["N-BLEU (32)", "PPL (32)", "GEN-PPL (32)", "Acc. (32)"]
    assert [h for h in rows[0] if h.startswith("N-BLEU")] == [f"N-BLEU ({n})" for n in (32, 64)]
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
    # one picture first; four kinds of forgetting against two of utility; the chance floor
    assert reader.tags.count("svg") == 1 + 2 * 4 + 2
    assert page.count('class="cross"') > 0
    assert page.count('class="ring"') == 0  # who beats whom was not measured
    assert page.count('class="error"') > 0
    assert "abc&lt;b&gt;" in page
    assert NOT_MEASURED in page
    assert "Share of passages that at least one of 4 samples reproduces exactly." in page  # nothing told: the defaults
    assert "top_p:1|samples:4|seed:0|" in page
    points[0]["settings"] = Settings(num_samples=9).to_dict()
    page = render_comparison(means(points), points)
    assert "at least one of 9 samples reproduces" in page
    assert "|samples:9|" in page  # worked out of the settings
    points[0]["signatures"] = {"exact_sampled": "as measured<"}
    assert "as measured&lt;" in render_comparison(means(points), points)
    write_pages(tmp_path, points, order=["original", "demem", "ul"])
    assert {p.name for p in tmp_path.iterdir()} == {"compare.html", "compare.md", "compare.tex"}
    text = (tmp_path / "compare.md").read_text()
    assert text == document(means(points))
    assert (tmp_path / "compare.tex").read_text().startswith("% needs \\usepackage{booktabs}\n\\begin{tabular}")
    assert "collapsed: empty" in text
    assert "± " in text
