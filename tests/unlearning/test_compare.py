"""``demem.py compare`` from outside, on a handful of rows: every kind of method, going on, and what is refused."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
from tqdm import tqdm

import demem
from data.study import Study
from data.types import Passage
from tests.unlearning.test_demem import fails, write_rows
from unlearning.compare.bench import Inputs, StopLog, shown_on, stop_rule
from unlearning.compare.comparison import begun_with, open_folder
from unlearning.compare.methods import METHODS
from unlearning.compare.settings import Comparison, Point, plan
from unlearning.compare.studies import resized
from unlearning.compare.unlearn import settings_of
from unlearning.options import PRESETS, Options

QUICK = ["--num-samples", "1", "--num-own", "8", "--steps", "2", "--check-every", "2", "--prompts-per-step", "4",
         "--minibatch", "4", "--retain-sequences", "2", "--retain-tokens", "24"]  # fmt: skip


@pytest.fixture
def command(tmp_path):
    """The comparison of a few rows, without its methods."""
    data = write_rows(tmp_path / "rows.jsonl", 8)
    notes = tmp_path / "notes.txt"
    notes.write_text("\n\n".join(f"A paragraph about the number {i * 7919} and nothing else." * 4 for i in range(40)))
    groups = ["--num-forget", "2", "--num-holdout", "2", "--num-never", "2", "--retain", str(notes)]
    return ["compare", "--data", data, *groups, *QUICK, "--seeds", "2", "--out", str(tmp_path / "out")]


def files(out) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "points").iterdir()}


def test_all_kinds_of_methods_and_going_on(tmp_path, command, capsys, monkeypatch):
    out, drawn, draw = tmp_path / "out", Counter(), demem.text_to_keep

    def text_to_keep(run):
        drawn[run.config.seed] += 1
        return draw(run)

    monkeypatch.setattr(demem, "text_to_keep", text_to_keep)
    assert demem.main([*command, "--knobs", "one", "--methods", "demem,distil,dp,memfree"]) == 0
    assert drawn == {0: 2, 1: 2}  # by DeMem's training, and once for the rivals, with each seed
    first = files(out)
    assert set(first) == {
        "original-n2-seed0.json",
        "demem-retain_coef-2.5-n2-seed0.json", "demem-retain_coef-2.5-n2-seed1.json",
        f"distil-retain_weight-{METHODS['distil'].default:g}-n2-seed0.json",
        f"distil-retain_weight-{METHODS['distil'].default:g}-n2-seed1.json",
        "dp-lambda-0.7-n2-seed0.json", "memfree-n-10-n2-seed0.json",
    }  # fmt: skip
    assert {"compare.html", "compare.md", "compare.tex", "compare.json"} <= {p.name for p in out.iterdir()}
    assert not list((out / "work").iterdir())
    point = json.loads((out / "points" / "demem-retain_coef-2.5-n2-seed1.json").read_text())
    assert point["summary"].keys() >= {"forget/exact_sampled", "forget_holdout/discoverable", "holdout/accuracy"}
    assert point["paper"].keys() >= {"paper/n_bleu", "paper/dropped"}
    assert point["cost"]["flops"] > 0
    assert point["seconds"] > 0
    assert point["notes"]["steps"] == 2
    points = [json.loads((out / "points" / name).read_text())
              for name in ("original-n2-seed0.json", "memfree-n-10-n2-seed0.json")]  # fmt: skip
    original, memfree = (point["summary"] for point in points)
    assert points[0]["signatures"]["discoverable"] + "|vetoed:0" == points[1]["signatures"]["discoverable"]
    low, high = points[0]["intervals"]["forget/bleu"]
    assert low <= original["forget/bleu"] <= high
    assert "forget/discoverable" in points[0]["intervals"]
    assert "forget/discoverable" not in points[1]["intervals"]  # those of the model, not of the decoding
    assert memfree["holdout/perplexity"] == pytest.approx(original["holdout/perplexity"], rel=1e-6)
    assert {group: len(columns["exact"]) for group, columns in point["values"].items() if "exact" in columns} == {
        "forget": 2,
    }
    assert sum(points[0]["values"]["texts"]["tokens"]) == pytest.approx(original["holdout/tokens"])
    nll = sum(points[0]["values"]["texts"]["nll"]) / original["holdout/tokens"]
    assert math.exp(nll) == pytest.approx(original["holdout/perplexity"], rel=1e-4)
    told = (out / "compare.md").read_text()
    assert "### Who beats whom at the defaults, 2 records" in told
    assert "### Clean, or not" in told

    lost = "demem-retain_coef-2.5-n2-seed0.json"
    (out / "points" / lost).unlink()
    assert demem.main([*command, "--knobs", "one", "--methods", "demem,dp,dp-logits"]) == 0
    second = files(out)
    assert {name for name in second if second[name] != first.get(name)} == {lost, "dp-logits-lambda-0.7-n2-seed0.json"}
    capsys.readouterr()
    line = fails(capsys, *command, "--methods", "dp", "--num-samples", "3")
    assert "begun with other settings (num_samples)" in line


def test_the_rivals_of_the_field_run_when_they_are_named(tmp_path, command):
    """Each trains with DeMem's text to keep, its cost is counted, and its point says at which rate."""
    names = ["grpo", "undial", "wga", "satimp", "jensun", "rmu", "undo", "dpo", "dpo-swapped"]
    assert not set(names) & set(Comparison().names)
    assert demem.main([*command, "--knobs", "one", "--seeds", "1", "--methods", ",".join(names)]) == 0
    points = [json.loads(p.read_text()) for p in (tmp_path / "out" / "points").iterdir()]
    found = {p["method"]: p for p in points}
    assert set(found) == {"original", *names}
    for name in names:
        assert found[name]["notes"]["steps"] == (4 if name == "undo" else 2)
        assert name == "grpo" or found[name]["notes"]["learning_rate"] > 0
        assert found[name]["cost"]["tokens"]["trained"] > 0
        assert found[name]["summary"]["forget/nll_suffix"] != found["original"]["summary"]["forget/nll_suffix"]
    assert found["dpo"]["cost"]["flops"] != found["dpo-swapped"]["cost"]["flops"]  # refusals are short


def test_the_evaluation_of_a_copy_in_bfloat16(tmp_path, command):
    found = {}
    for dtype in ("same", "bfloat16"):
        out = ["--out", str(tmp_path / dtype), "--eval-dtype", dtype, "--autocast", "bfloat16"]
        assert demem.main([*command, "--methods", "ul", "--knobs", "one", "--seeds", "1", *out]) == 0
        found[dtype] = {f.name: json.loads(f.read_text())["summary"] for f in (tmp_path / dtype / "points").iterdir()}
    for name, plain in found["same"].items():
        coarse = found["bfloat16"][name]
        assert coarse["holdout/perplexity"] != plain["holdout/perplexity"]
        near = 0.01 if name.startswith("original") else 0.05  # ascent has broken the other
        assert coarse["holdout/perplexity"] == pytest.approx(plain["holdout/perplexity"], rel=near)


def test_what_the_paper_sets_stays_the_paper_s():
    changes = {"learning_rate": 1e-3, "microbatch": 4}
    assert settings_of("demem", changes)["learning_rate"] == 1e-3
    assert settings_of("paper", changes) == PRESETS["paper"] | {"microbatch": 4}


def test_an_adapter_and_attacks_on_every_point(tmp_path, command, capsys):
    attacks = ["--attacks", "relearning", "--relearning-steps", "1", "--attack-groups", "forget"]
    assert "leaves nothing to teach" in fails(capsys, *command, *attacks, "--methods", "dp")
    assert "goes with --attacks" in fails(capsys, *command, *attacks[2:], "--methods", "dp")
    assert "does not go with dp" in fails(capsys, *command, "--eval-dtype", "bfloat16", "--methods", "dp")
    command = [*command, "--num-forget", "4", "--knobs", "one", "--seeds", "1", *attacks]
    command += ["--baseline-rate", "3e-5"]
    assert demem.main([*command, "--methods", "demem-lora,dp,npo"]) == 0
    names = ("original-n4-seed0", "demem-lora-lora_rank-16-n4-seed0", "dp-lambda-0.7-n4-seed0")
    original, adapter, decoding = (
        json.loads((tmp_path / "out" / "points" / f"{name}.json").read_text()) for name in names
    )
    assert adapter["summary"]["forget/nll_suffix"] != original["summary"]["forget/nll_suffix"]
    assert [a["name"] for a in adapter["attacks"]] == [
        *(f"relearning steps:{n}|{part}" for n in (0, 1) for part in ("taught", "not taught")),
        "relearning steps:1|benign",
        "relearning steps:1|filler",
    ]
    assert all(set(a["groups"]) == {"forget"} for a in adapter["attacks"])
    assert "attacks" not in decoding  # whoever holds the weights does not decode by it
    assert "what attacks get out exactly" in (tmp_path / "out" / "compare.md").read_text()
    capsys.readouterr()
    npo = json.loads(next((tmp_path / "out" / "points").glob("npo-*.json")).read_text())
    assert npo["notes"]["learning_rate"] == 3e-5
    line = fails(capsys, *command, "--relearning-steps", "2", "--baseline-rate", "1e-4", "--methods", "dp")
    assert "begun with other settings (relearning_steps, baseline_rate)" in line
    assert "microbatch=16" in fails(capsys, *command, "--microbatch", "16", "--methods", "paper")


def test_what_cannot_be_compared_is_refused(tmp_path, command, capsys):
    assert "names 'best'" in fails(capsys, *command, "--methods", "best")
    assert "is a method here" in fails(capsys, *command, "--preset", "paper")
    assert "is a method here: --methods demem-lora" in fails(capsys, *command, "--lora-rank", "4")
    assert "has no twin: leave out dedup" in fails(capsys, *command, "--methods", "dedup")
    assert "must be at least 1" in fails(capsys, *command, "--seeds", "0")
    assert "must be whole numbers above 0" in fails(capsys, *command, "--sizes", "a")
    assert "--sizes 9 is more than the 4 passages" in fails(capsys, *command, "--methods", "dp", "--sizes", "2,9")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").write_text("x")
    assert "is not empty" in fails(capsys, *command, "--methods", "dp")


def test_a_folder_goes_on_when_there_are_new_options(tmp_path):
    run = SimpleNamespace(options=Options(out=str(tmp_path)), out=tmp_path)
    open_folder(run, {}, {})
    written = (tmp_path / "compare.json").read_text()
    known = json.loads(written)
    del known["options"]["el_stride"]  # it was begun when there was no such option
    (tmp_path / "compare.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"begun with other settings \(el_stride\)"):
        open_folder(SimpleNamespace(options=Options(out=str(tmp_path), el_stride=5), out=tmp_path), {}, {})
    open_folder(run, {}, {})
    assert (tmp_path / "compare.json").read_text() == written
    with pytest.raises(ValueError, match="el_stride"):
        Options(el_stride=-1)


def test_a_rival_ends_after_two_good_looks_in_a_row_and_not_before(tmp_path, monkeypatch):
    """By DeMem's own rule, the floor that was asked for included; a look that is lost with a kill is not counted."""
    good = {"forget/exact": 0.04, "forget/bleu": 9.0, "forget/approximate": 0.0, "forget/empty": 1.0}
    found = iter([good, good | {"forget/bleu": 11.0}, good, good | {"forget/exact": 0.06}, good, good])
    monkeypatch.setattr("unlearning.compare.bench.probe", lambda *_: next(found))
    run = SimpleNamespace(
        options=Options(check_every=2, target_exact=0.05),
        loaded=SimpleNamespace(tokenizer=None),
        study=Study([], [], []),
    )
    inputs = Inputs(run, 10.0, lambda _: [], None, None, tmp_path)
    looks = StopLog(tmp_path / "looks.json")
    with tqdm(total=12, disable=True) as bar:
        stop = stop_rule(inputs, None, looks, bar)
        assert [stop(steps) for steps in range(1, 13)] == [False] * 11 + [True]
    assert looks.until(8) == [True, False, True, False]
    assert looks.add(8, True) == [True, False, True, True]


def test_a_training_that_ends_of_itself_is_shown_all_the_same():
    with tqdm(total=4, disable=True) as quiet:
        assert shown_on(quiet)(4) is False
    with tqdm(total=4, file=io.StringIO()) as bar:
        goes_on = shown_on(bar)
        assert [goes_on(steps) for steps in (1, 2, 3, 4)] == [False] * 4
        assert bar.n == 4


def test_the_plan_has_defaults_first_and_every_seed():
    points = list(plan(Comparison(methods="npo,dp", seeds=2), seed=5, size=64))
    assert points[:3] == [Point("original", 0.0, 5, 64), Point("npo", METHODS["npo"].default, 5, 64), points[2]]
    assert points[2] == Point("dp", METHODS["dp"].default, 5, 64)
    assert len(points) == len(set(points)) == 1 + 2 * 3 + 3
    assert {p.seed for p in points if p.name == "npo"} == {5, 6}
    one = list(plan(Comparison(methods="npo,dedup", seeds=3, twin_seeds=1, knobs="one"), seed=0, size=64))
    ascent = Comparison(methods="ul", seeds=3, knobs="one", forget_on="suffix")
    assert [p.seed for p in plan(ascent, seed=4, size=64)] == [4, 4]  # all rows are in every step: nothing is drawn
    ascent = Comparison(methods="ul", seeds=2, knobs="one")
    assert [p.seed for p in plan(ascent, seed=4, size=64)] == [4, 4, 5]
    assert [p.key for p in one if p.name == "dedup"] == ["dedup-n64-seed0"]
    assert all(m.default in m.values and len(m.values) in (1, 3) for m in METHODS.values())


def test_a_size_moves_the_border_between_forget_and_holdout():
    groups = ["forget", "forget", "keep", "forget_holdout", "forget_holdout", "never"]
    study = Study([Passage(str(i), (), (1,), (2,), g) for i, g in enumerate(groups)], [], [])
    assert [p.id for p in resized(study, 3).group("forget")] == ["0", "1", "3"]
    assert [p.id for p in resized(study, 1).group("forget_holdout")] == ["1", "3", "4"]
    assert resized(study, 2) == study
    assert [p.id for p in resized(study, 1, most_holdout=2).passages] == ["0", "1", "2", "3", "5"]


def test_the_notebook_s_preset_from_the_command_line(tmp_path, command):
    out = tmp_path / "run"
    data, groups = command[2], command[3:9]
    arguments = ["run", "--data", data, *groups, "--preset", "paper-as-run", "--steps", "1", "--num-samples", "0"]
    small = ["--prompts-per-step", "8", "--minibatch", "4", "--epochs", "1"]
    assert demem.main([*arguments, *small, "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["response_length"], config["min_response_length"], config["kl_coef"]) == (55, 0, 0.2)
    assert {"DEMEM_EVAL.json", "DEMEM_SUMMARY.json"} <= {p.name for p in out.iterdir()}
    assert "No proof of deletion" in (out / "model" / "README.md").read_text()
    row = json.loads((out / "metrics.jsonl").read_text())
    assert row["kl/per_sequence"] == pytest.approx(0.0, abs=1e-3)  # it never acts
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000001"]  # one after every batch
    assert demem.main(["train", "--resume", "--out", str(out)]) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1  # so many batches and no more


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "it holds a list, not an object"),
        ("{}", "options is None, not an object"),
        ('{"options": 5, "config": {}}', "options is 5, not an object"),
        ('{"options": {}, "config": []}', r"config is \[\], not an object"),
        ('{"options": {}, "config": {}, "comparison": "x"}', "comparison is 'x', not an object"),
        ("{", "Expecting"),
        ('{"a": "\\ud800"}', "half a character"),
    ],
)
def test_settings_that_somebody_sent_are_held_against_their_shape(tmp_path, text, told):
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        begun_with(tmp_path / "compare.json")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_read_with_a_bound(tmp_path):
    with (tmp_path / "compare.json").open("wb") as file:
        file.truncate(10**11)  # a hole: it takes no room
    with pytest.raises(ValueError, match=r"compare\.json is damaged: it is longer than"):
        begun_with(tmp_path / "compare.json")
