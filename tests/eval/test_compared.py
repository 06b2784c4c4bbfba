"""Points that somebody sent: a page of them is made, or a ValueError of one line names file and field."""

from __future__ import annotations

import copy
import json
import random

import pytest

from eval import compared
from eval.compared import compared_points
from eval.points import MOST_BYTES, MOST_POINTS, store_point, stored_points
from eval.report.comparison.page import write_pages
from tests.fuzz_damage import changed_nodes
from tests.fuzz_files import SUMMARY, point
from tests.resealed import WRONG, changed, fields


def folder_of(path, *points):
    for i, one in enumerate(points):
        store_point(path, f"p{i}", one)
    return path


def pages(folder):
    write_pages(folder, compared_points(folder), order=["original", "demem"])
    return (folder / "compare.html").read_text()


def test_good_points_become_pages(tmp_path):
    page = pages(
        folder_of(
            tmp_path, point("original", "original"), point(), point(seed=1), point("without-forget", "retraining")
        )
    )
    assert "demem (retain_coef 1)" in page


def test_every_field_of_a_point(tmp_path):
    """Each is left out, or gets many wrong values. What may be missing is missing in older folders."""
    folder_of(tmp_path, point("original", "original"))
    whole, refused, taken = point(), 0, set()
    for path in fields(whole):
        for how, value in WRONG.items():
            one = changed(whole, path, value)
            store_point(tmp_path, "wrong", one)
            try:
                pages(tmp_path)
                taken.add((".".join(map(str, path)), how))
            except ValueError as error:
                refused += 1
                text = str(error)
                assert str(tmp_path / "points" / "wrong.json") in text
                assert "\n" not in text
                assert len(text) < 700
                assert str(path[0]) in text, text
    assert refused > 500
    left_out = {name for name, how in taken if how == "left out"}
    assert {
        "notes",
        "settings",
        "signatures",
        "paper",
        "attacks",
        "values",
        "intervals",
        "source",
        "budget",
        "text_to_keep",
        "kept",
        "tuning",
        "summary.never/bleu",
    } <= left_out
    assert not left_out & {"method", "kind", "knob", "value", "is_default", "seed", "size", "cost", "summary", "meta"}
    assert not {(name, "text") for name, how in taken if how == "text"} - {
        ("method", "text"), ("kind", "text"), ("knob", "text"), ("meta.command", "text"), ("signatures.bleu", "text"),
        ("attacks.0.name", "text"), ("values.keep.of", "text"), ("values.texts.of", "text"),
        ("source", "text"), ("notes.reward", "text"),
        ("tuning.value", "text"), ("tuning.seed", "text"), ("tuning.tried.1", "text"), ("tuning.tried.2", "text"),
        ("tuning.tried.1.loss", "text"), ("tuning.tried.2.loss", "text"), ("budget.flops", "text"),  # no page has them
    }  # fmt: skip


def test_damaged_nodes_by_the_hundred(tmp_path):
    folder_of(tmp_path, point("original", "original"), point("ul"))
    for seed in range(400):
        (tmp_path / "points" / "x.json").write_text(json.dumps(changed_nodes(point(), random.Random(seed))))
        try:
            pages(tmp_path)
            told = str(tmp_path)
        except ValueError as error:
            told = str(error)
        assert str(tmp_path) in told
        assert "\n" not in told


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("method", "<script>", "method is '<script>', not a name of at most 60 plain signs"),
        ("method", "x\u202ey", "method is 'x.u202ey', not a name"),
        ("holdout/perplexity", 0.0, "summary, 'holdout/perplexity' is 0.0, not a perplexity, which is at least 1"),
        ("holdout/perplexity", float("inf"), "summary, 'holdout/perplexity' is inf, not a perplexity"),
        ("forget/bleu", float("nan"), "summary, 'forget/bleu' is nan, not a number"),
        ("settings", {"unheard": 1}, "settings, 'unheard' is 1, not known to this version"),
        ("settings", {"num_samples": "4"}, "settings: "),
        ("settings", {"num_samples": -4}, "settings: Settings.num_samples=-4 must be at least 0"),
        ("attacks", [{"name": "a", "groups": {"keep": {}}}], "attacks, 1, groups, 'keep', exact is None"),
        (
            "attacks",
            [{"name": "a", "groups": {"keep": {"exact": 0.0, "secret": "x"}}}],
            "attacks, 1, groups, 'keep', secret is 'x', not a number",
        ),
        ("cost", {"seconds": -1, "flops": 1}, "cost, seconds is -1, not a number from 0"),
        ("values", {"other": {}}, "values, 'other' is {}, not known to this version"),
        ("values", {"keep": {"of": "x", "exact": [1, "1"]}}, "values, 'keep', exact is '1', not a list of numbers"),
        ("values", {"keep": {"of": "x", "exact": []}}, r"values, 'keep', exact is \[\], not a list of 1 to"),
        ("values", {"texts": {"of": "x", "nll": [1.5], "tokens": [0]}}, "values, 'texts', tokens is .0., not above 0"),
        ("source", "x" * 201, "source is 'xx.*, not a text of at most 200 signs"),
        ("notes", {"reward": 5}, "notes, reward is 5, not a text of at most 200 signs"),
        ("budget", {"updates": -1}, "budget, updates is -1, not a number from 0 on"),
        ("text_to_keep", {"keep": "all"}, "text_to_keep, 'keep' is 'all', not a number from 0 on"),
        ("kept", {"texts": 5}, "kept, 'tokens' is None, not a number from 0 on"),
        ("tuning", {"tried": [], "passages": {}}, r"tuning, tried is \[\], not an object"),
        ("size", True, "size is True, not a whole number from 0 on"),
    ],
)
def test_the_error_names_file_field_and_value(tmp_path, name, value, told):
    one = point()
    (one["summary"] if name in SUMMARY else one)[name] = value
    folder_of(tmp_path, point("original", "original"), one)
    with pytest.raises(ValueError, match=rf"p1\.json is damaged: {told}"):
        compared_points(tmp_path)


def test_a_quantity_of_which_nothing_is_drawn_may_be_infinite(tmp_path):
    one = point()
    one["summary"]["forget/nll_suffix"] = float("inf")
    assert "demem" in pages(folder_of(tmp_path, point("original", "original"), one, one))


def test_an_original_that_lacks_what_the_others_have(tmp_path):
    original = point("original", "original")
    for name in ("holdout/perplexity", "never/true_token_p"):
        del original["summary"][name]
    pages(folder_of(tmp_path, original, point()))
    assert "| perplexity ratio |" not in (tmp_path / "compare.md").read_text()
    store_point(tmp_path, "p2", point(size=9))
    with pytest.raises(
        ValueError, match=r"p2\.json has the size 9: there is no point of the original model for 9 records"
    ):
        pages(tmp_path)


def test_a_packed_point_is_named_by_its_key(tmp_path):
    (tmp_path / "points.jsonl").write_text(json.dumps(point(seed="0") | {"key": "a\x1b"}) + "\n")
    with pytest.raises(ValueError, match=r"points\.jsonl, point 'a.x1b' is damaged: seed is '0'"):
        compared_points(tmp_path)


def test_very_many_points_and_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(compared, "MOST_VARIANTS", 3)
    original = point("original", "original")
    folder_of(tmp_path, original, *(point(value=float(i)) for i in range(3)))
    with pytest.raises(ValueError, match="holds 4 different variants; a page shows at most 3"):
        pages(tmp_path)
    monkeypatch.setattr(compared, "MOST_VARIANTS", 500)
    attacks = [{"name": f"a{i}", "groups": {"forget": {"exact": 0.0}}} for i in range(501)]
    store_point(tmp_path, "p0", copy.deepcopy(original) | {"attacks": attacks})
    with pytest.raises(ValueError, match="holds 503 different attacks; a page shows at most 500"):
        pages(tmp_path)


def test_a_folder_of_too_many_or_too_large_files(tmp_path):
    (tmp_path / "points.jsonl").write_text("".join(f'{{"key": "{i}"}}\n' for i in range(MOST_POINTS + 1)))
    with pytest.raises(ValueError, match=rf"line {MOST_POINTS + 1} is one point too many: at most {MOST_POINTS}"):
        stored_points(tmp_path)
    with (tmp_path / "points.jsonl").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match=f"at most {MOST_POINTS} files and {MOST_BYTES} bytes are read"):
        stored_points(tmp_path)
