"""The page of a comparison: who beats whom first, then one table, what its methods were given, and one picture."""

from __future__ import annotations

import pytest

from eval.pareto import TARGET, Mean, means
from eval.report.comparison.charts import lead_chart
from eval.report.comparison.document import document
from eval.report.comparison.given import NOT_STORED, given_lines, settings
from eval.report.comparison.headline import NOBODY, first_table, headline
from eval.report.comparison.page import render_comparison, write_pages
from eval.report.comparison.text import attack_columns, latex_notes
from eval.report.comparison.verdict import NOT_MEASURED
from tests.eval.test_beats import GOOD, ORIGINAL, with_values
from tests.eval.test_pareto import original, point
from tests.eval.test_report import read

DEEP = {"ma_suffix": lambda i, row: row["ma_suffix"] + 0.3}
BUDGET = {
    "updates": 16, "most_updates": 16, "update_rows": 16, "rows": 640, "forget_on": "passage", "forget_tokens": 3000.4,
    "keep_tokens": 2500.0, "early_end": False, "look_every": 0,
}  # fmt: skip
KEPT = {
    "text_to_keep": {"keep": 0.0, "keep_shown": 0.07},
    "kept": {"texts": 120, "tokens": 18_000, "own": 80, "records": 30},
}


def trained(method: str, *, seed: int = 0, value: float = 1.0, is_default: bool = True, **budget: object) -> dict:
    """A point that says what its method was given."""
    found = point(method, value=value, seed=seed, is_default=is_default) | KEPT | {"budget": BUDGET | budget}
    return found | {"source": f"Author of {method}, eq. 1", "notes": {}}


def lines(*points: dict) -> dict[str, str]:
    return dict(given_lines(means([original(), *points])))


# ---------------------------------------------------------------------- who beats whom


def test_the_headline_says_who_beats_whom_in_a_sentence_each():
    points = [
        ORIGINAL,
        with_values(point("demem"), forget=DEEP),
        GOOD,
        with_values(point("npo"), forget=DEEP, keep=0.5),
        with_values(point("simnpo"), forget={"ma_suffix": 0.95}, nll=36.0),  # shallower, and a better language
        with_values(point("ul", forget__empty=0.9), nll=1.0),
        with_values(point("memfree", "decoding"), forget=DEEP),
    ]
    found = headline(means(points))
    assert found[:5] == [
        "demem beats npo (better in keep).",
        "demem is beaten by distil (worse in depth).",
        "demem neither beats nor is beaten by simnpo (better in depth; worse in perplexity).",
        "demem cannot be told from memfree.",
        "Collapsed, so beating nobody: ul.",
    ]
    assert found[5].startswith("How sure: 95 %, passage by passage, for all differences of a pair together.")
    assert found[5].endswith("A method that was trained once may do otherwise with another seed.")
    assert len(found) == 6


def test_an_area_that_is_better_and_worse_is_told_by_its_numbers():
    leaky = with_values(point("npo"), forget={"exact_sampled": 1.0})
    runs = with_values(point("deep"), forget={"verbatim_run": 30.0})
    assert headline(means([ORIGINAL, runs, leaky]))[0] == (
        "deep neither beats nor is beaten by npo (better in sampled extraction; worse in longest verbatim run)."
    )


def test_the_preset_deep_speaks_first_and_every_size_for_itself():
    points = [with_values(point(name), forget=DEEP if name == "npo" else None) for name in ("demem", "deep", "npo")]
    assert [line.split()[0] for line in headline(means([ORIGINAL, *points]))] == [
        "deep",
        "deep",
        "demem",
        "demem",
        "How",
    ]
    more = [{**p, "size": 32} for p in (ORIGINAL, *points)]
    said = headline(means([ORIGINAL, *points, *more]))
    assert said[0] == "Of 64 records to forget: deep beats npo (better in depth)."
    assert "Of 32 records to forget: deep beats npo (better in depth)." in said


def test_without_a_method_of_ours_each_pair_is_said_once():
    npo = with_values(point("npo"), forget=DEEP)
    assert headline(means([ORIGINAL, GOOD, npo]))[0] == "distil beats npo (better in depth)."
    assert len(headline(means([ORIGINAL, GOOD, npo]))) == 2
    assert headline(means([ORIGINAL, GOOD, GOOD | {"method": "npo"}]))[0] == NOBODY
    assert headline(means([ORIGINAL, GOOD])) == [NOT_MEASURED]  # nobody to be held against
    assert headline(means([original(), point(), point("npo")])) == [NOT_MEASURED]


def test_several_trainings_of_each_need_no_warning_of_one():
    points = [with_values(point(name, seed=seed)) for name in ("deep", "npo") for seed in range(2)]
    assert headline(means([ORIGINAL, *points]))[-1].endswith("the passages are too few.")


# ---------------------------------------------------------------------- the first table


def test_every_row_says_its_formula_and_whether_it_was_tuned():
    tuning = {"value": 2.0, "tried": {"1": {}, "2": {}, "4": {}}, "seed": 0, "passages": {"forget": 16}}
    one = tuning | {"tried": {"1": {}}}
    points = [
        trained("deep"), trained("npo") | {"tuning": tuning}, trained("wga") | {"tuning": one},
        point(TARGET, "retraining") | {"source": "no formula: trained again"},
    ]  # fmt: skip
    head, *rows = first_table(means([original(), *points]))
    assert head[:2] == ["method", "verdict"]
    assert head[-3:] == ["seeds", "formula", "settings"]
    assert [row[-2:] for row in rows] == [
        ["-", "-"],
        ["Author of deep, eq. 1", "not tuned"],
        ["Author of npo, eq. 1", "beta: best of 3; the rest not tuned"],
        ["Author of wga, eq. 1", "not tuned"],  # one value is no choice
        ["no formula: trained again", "-"],
    ]
    assert "formula" not in first_table(means([original(), point()]))[0]  # older points do not know


def test_the_first_table_says_how_each_stands_beside_ours():
    points = [with_values(point("deep")), with_values(point("npo"), forget=DEEP), point("wga"),
              with_values(point("npo", value=2.0, is_default=False))]  # fmt: skip
    rows = first_table(means([ORIGINAL, *points]))
    place = rows[0].index("beside deep")
    assert {row[0]: row[place] for row in rows[1:]} == {"original": "-", "deep": "-", "npo": "worse", "wga": "-"}
    assert "beside demem" not in first_table(means([original(), point()]))[0]  # nothing to hold against it


# ---------------------------------------------------------------------- what was given


def test_what_is_alike_is_said_once():
    found = lines(trained("deep", own_rows=320), trained("npo"), trained("wga", forget_on="suffix", rows=64))
    assert found["Updates"] == "deep, npo and wga: 16, and no look could end them earlier."
    assert found["Rows to forget"] == (
        "deep: 16 in each update, out of 640: windows of the whole passage; the policy itself continues 320 of them. "
        "npo: 16 in each update, out of 640: windows of the whole passage. "
        "wga: 16 in each update, out of 64: the suffix behind its prefix."
    )
    assert found["Tokens in the losses"] == "deep, npo and wga: 3,000 to forget, 2,500 to keep."
    assert found["Values"] == "deep, npo and wga: beta 1, its default. Nothing was tuned for this comparison."
    assert found["Text to keep"] == (
        "120 texts of 18,000 tokens, the same for all methods with a seed. The model wrote 80 of them itself, 30 are "
        "records to keep, some more than once. Of all runs of 20 tokens, 0 % of those of keep and 7 % of those of "
        "keep-shown stand in it. The records of keep are held back from it."
    )
    assert "Reward" not in found


def test_an_early_end_is_told_with_the_range_over_seeds():
    early = {"most_updates": 120, "early_end": True, "look_every": 8}
    found = lines(trained("npo", updates=12, **early), trained("npo", seed=1, updates=40, **early))
    assert found["Updates"] == "npo: 12 to 40 of at most 120; a look after every 8 could end them."


def test_siblings_are_told():
    assert lines(trained("deep", siblings=64))["Rows to forget"].endswith(
        "windows of the whole passage; beside them at most 64 texts of the same form."
    )


def test_values_that_are_all_shown_and_values_that_were_chosen():
    shown = lines(trained("npo"), trained("npo", value=2.5, is_default=False))
    assert shown["Values"] == ("npo: beta 1, its default; 1, 2.5 are all shown. Nothing was tuned for this comparison.")
    tuning = {"value": 1.0, "tried": {"1": {}, "2.5": {}}, "seed": 0, "passages": {"forget": 16, "keep_shown": 6}}
    assert lines(trained("npo") | {"tuning": tuning}, trained("wga"))["Values"] == (
        "npo: beta 1, the best of 1, 2.5. wga: beta 1, its default. A best value was chosen with one "
        "training each, on texts that are not reported: 16 forget, 6 keep-shown, and held-out text. The other settings "
        "of every method were not tuned."
    )


def test_who_keeps_no_text_is_named():
    ascent = {name: value for name, value in trained("ul", keep_tokens=0.0).items() if name not in KEPT}
    assert lines(trained("npo"), ascent)["Text to keep"].endswith("ul keeps none.")
    assert lines(ascent)["Text to keep"] == "ul keeps none."


def test_without_records_to_keep_the_text_to_keep_is_counted_alone():
    plain = {name: value for name, value in trained("npo").items() if name != "text_to_keep"}
    assert lines(plain)["Text to keep"].endswith("30 are records to keep, some more than once.")


def test_the_reward_that_a_row_truly_had():
    paper = trained("paper") | {"notes": {"reward": "BLEU, in the place of BERTScore"}}
    assert lines(paper, trained("npo"))["Reward"] == "paper: BLEU, in the place of BERTScore."


def test_numbers_of_records_are_named_where_there_are_several():
    points = [original(32), original(64), *({**trained("npo", rows=10 * size), "size": size} for size in (32, 64))]
    found = dict(given_lines(means(points)))
    assert found["Rows to forget"].startswith("npo (32 records): 16 in each update, out of 320")
    assert found["Updates"] == "npo (32 records) and npo (64 records): 16, and no look could end them earlier."


def test_older_points_say_that_they_do_not_know():
    assert given_lines(means([original(), point()])) == [("What was given", NOT_STORED)]
    assert given_lines(means([original()])) == []
    assert settings(means([original()])[0]) == "-"


# ---------------------------------------------------------------------- pages


def test_all_three_files_show_what_was_given(tmp_path):
    paper = trained("paper") | {"notes": {"reward": "BERTScore, some_encoder, layer 6"}}
    write_pages(tmp_path, [original(), trained("deep"), paper], order=["original", "deep", "paper"])
    page, text, tex = ((tmp_path / f"compare.{kind}").read_text() for kind in ("html", "md", "tex"))
    for told in (page, text, tex):
        assert "deep and paper: 16, and no look could end them earlier." in told
        assert "held back from it" in told
        assert "Nothing was tuned for this comparison." in told
        assert "Author of deep, eq. 1" in told
    assert "paper: BERTScore, some_encoder, layer 6." in page
    assert r"paper: BERTScore, some\_encoder, layer 6." in tex
    assert "deep: Author of deep, eq. 1, not tuned." in tex
    assert tex.index(r"\end{tabular}") < tex.index(r"\textit{Updates.}")
    assert "keep_shown" not in page + text + tex


def test_the_order_of_the_page_and_of_the_text():
    points = [ORIGINAL, with_values(trained("deep")), with_values(trained("npo"), forget=DEEP)]
    found = means(points)
    for told in (render_comparison(found, points), document(found)):
        places = [told.index(part) for part in (
            "deep beats npo (better in depth).", "The methods at their defaults", "Author of npo, eq. 1",
            "16, and no look could end them earlier", "passage by passage: a paired bootstrap", "Every point: ",
        )]  # fmt: skip
        assert places == sorted(places)
    page = render_comparison(found, points)
    assert page.index("16, and no look") < page.index("In one picture") < page.index("All the rest")
    rest = page[page.index("All the rest") :]
    reader = read(page)
    assert reader.tags.count("table") - rest.count("<table") == 1  # the first; all others are folded
    assert "<h2" not in rest
    assert rest.count("<table") == rest.count("</table></div></details>")


def test_a_spread_stands_below_its_mean_in_the_first_table():
    points = [original(), *(point(seed=seed, keep__exact=0.5 + seed / 4) for seed in range(2))]
    page = render_comparison(means(points), points)
    assert '<td>62.5 %<span class="range">± 17.7</span></td>' in page
    assert "| 62.5 ± 17.7 % |" in document(means(points))


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"depth__ma_suffix": -0.02}, "As deep as on passages never trained on"),
        ({}, "Nothing comes out, and the rest is kept"),
    ],
)
def test_the_one_picture_is_the_deepest_that_was_measured(changes, title):
    picture = lead_chart(means([original(), point(**changes)]))
    assert picture.count("<svg") == 1
    assert title in picture
    twin = [point(TARGET, "retraining", forget__ma_suffix=0.5), point(forget__ma_suffix=0.6, **changes)]
    assert "as deep as the exact twin" in lead_chart(means([original(), *twin]))


def test_attacks_and_lines_for_latex_have_labels():
    attack = {"attacks": [{"name": "beam", "groups": {"forget_holdout": {"exact": 0.0}}}]}
    assert attack_columns(means([original() | attack]))[0][1] == "forget-holdout beam"
    assert latex_notes([("A_b", "5 %")]).splitlines()[1] == r"\textit{A\_b.} 5 \%\par"


def test_a_mean_counts_updates_where_a_budget_is_known():
    found: list[Mean] = means([original(), trained("npo", updates=12), trained("npo", seed=1, updates=20)])
    assert found[1].get("cost/updates") == 16.0
    assert found[0].get("cost/updates") is None
