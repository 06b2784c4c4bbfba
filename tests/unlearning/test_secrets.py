"""When a training ends where passages have secrets, and which chance floor is used."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest

import demem
from data.private_words import Word
from data.study import Study, load_study
from data.types import Passage
from models.lab.load import load_tokenizer
from unlearning.floor import chance_floor, private_bleu, told_floor, without_shared
from unlearning.options import Options
from unlearning.recipe import StopRule, is_forgotten

LOOK = {"forget/exact": 0.0, "forget/bleu": 20.0, "forget/approximate": 0.0, "forget/empty": 0.0}
NONE = {"secret_greedy": 0.0, "secret_hinted": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.mark.parametrize(
    ("greedy", "hinted", "most", "is_gone"),
    [
        (0.0, 0.0, NONE, True),
        (0.1, 0.1, NONE, False),
        (0.0, 0.1, NONE, False),
        (0.1, 0.2, {"secret_greedy": 0.1, "secret_hinted": 0.2}, True),
        (0.1, 0.21, {"secret_greedy": 0.1, "secret_hinted": 0.2}, False),
        (1.0, 1.0, {}, True),
    ],
)
def test_a_look_must_find_no_more_secrets_than_are_guessed_of_strangers(greedy, hinted, most, is_gone):
    look = {**LOOK, "forget/secret_greedy": greedy, "forget/secret_hinted": hinted}
    assert is_forgotten(look, 0.05, 21.0, secrets=most) is is_gone
    assert is_forgotten(look, 0.05, 0.0, secrets=most) is is_gone
    assert not is_forgotten({**look, "forget/exact": 0.1}, 0.05, 21.0, secrets=most)


def test_a_look_at_passages_without_secrets_asks_for_the_rest():
    assert is_forgotten(LOOK, 0.05, 21.0, secrets=NONE)
    assert not is_forgotten(LOOK, 0.05, 19.0, secrets=NONE)


def test_a_training_goes_on_while_secrets_come_out(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def write(*shares):
        rows = [{**LOOK, "step": i, "forget/secret_greedy": s, "forget/secret_hinted": s} for i, s in enumerate(shares)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    rule = StopRule(path, 0.05, 21.0, NONE)
    write(0.0, 0.1, 0.0)
    assert not rule.is_met(3)
    assert StopRule(path, 0.05, 21.0).is_met(3)  # nothing is known of secrets
    write(0.1, 0.0, 0.0)
    assert rule.is_met(3)


def test_a_training_that_ends_too_early_says_what_still_comes_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rule = StopRule(path, 0.05, 21.0, {"secret_greedy": 0.0, "secret_hinted": 0.1})
    assert rule.missed(0) == ""
    rows = [{**LOOK, "step": i, "forget/secret_greedy": 0.0, "forget/secret_hinted": share} for i, share in
            enumerate((0.0, 0.6, 0.1, 0.0))]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rule.missed(2) == (
        "NOT FORGOTTEN after 2 steps: a secret comes out after a hint of true tokens of 60.0% of the forget set "
        "(allowed: 10.0%). More --steps may help, or another recipe"
    )
    assert "one good look is not enough" in rule.missed(3)
    assert rule.missed(4) == ""
    bad = {**LOOK, "forget/exact": 0.5, "forget/bleu": 90.0, "forget/empty": 0.1, "forget/approximate": 0.6, "step": 4}
    path.write_text(json.dumps(bad) + "\n")
    told = rule.missed(9)
    assert "50.0% of the suffixes come back (allowed: 5.0%); BLEU is 90.0 (chance: 21.0); 10.0% of the outputs" in told
    assert "60.0% come back approximately" in StopRule(path, 0.05, 0.0).missed(9)


def test_an_attack_shows_secrets_where_passages_are_shown_and_nowhere_else(tmp_path, capsys):
    rows = []
    for i, (name, group) in enumerate((("Ann", "forget"), ("Bob", "forget"), ("Eve", "never"))):
        secret = f"{4711 + 7 * i}-K{i}"
        texts = {"prefix": f"Ask {name} for the number of", "suffix": f" box {secret}, in the cellar of the house"}
        rows.append({**texts, "secrets": [secret], "group": group})
    data, out = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert demem.main(["attack", "--data", str(data), "--out", str(out), "--num-samples", "1"]) == 0
    assert "Secret still emitted" in capsys.readouterr().out
    evaluation = (out / "evaluation.json").read_text()
    found = json.loads(evaluation)["before"]
    assert found["settings"]["secrets_by"] == "named"
    assert found["summary"]["forget/num_secrets"] == 1.0
    assert next(iter(json.loads(evaluation)["summary"])) == "forget/secret_emitted"
    page = (out / "report.html").read_text()
    for row in rows:
        (secret,) = row["secrets"]
        assert secret not in evaluation
        assert f'<mark class="secret">{secret}</mark>' in page
        assert secret in (out / "passages.jsonl").read_text()
    assert demem.main(["attack", "--data", str(data), "--out", str(tmp_path / "b"), "--secrets", "pii"]) == 2
    assert "the data names its secrets" in capsys.readouterr().err
    assert demem.main(["attack", "--data", str(data), "--out", str(tmp_path / "c"), "--secrets", "phone"]) == 2
    assert "--secrets 'phone' must be pii, none or re:" in capsys.readouterr().err


# ---------------------------------------------------------------------- the floor


def test_what_is_not_private_becomes_a_filler():
    suffix = " signed by Ann, 5512"
    words = [Word("signed", 1, 7, False), Word("by", 8, 10, False), Word("Ann", 11, 14, True), Word(",", 14, 15, False),
             Word("5512", 16, 20, True)]  # fmt: skip
    assert without_shared(suffix, words) == " □□□□□□ □□ Ann □  5512"
    assert without_shared("", []) == ""


def make_run(study, tokenizer, **options):
    return SimpleNamespace(study=study, loaded=SimpleNamespace(tokenizer=tokenizer), options=Options(**options))


def records_of_one_form(tokenizer):
    def ids(text):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    rows = []
    for i, group in enumerate(["forget"] * 6 + ["never"] * 4):
        number = 194476 + 7919 * i
        suffix = f" {number}-B{i}. In the mornings at the desk of the second floor, pays by card, allergic to nuts."
        rows.append(Passage(f"r{i}", (), ids("insured with Meridian Mutual under the number"), ids(suffix), group))
    return Study(rows, [], [])


def test_a_floor_under_which_secrets_fit_is_told_of_and_not_used(tokenizer):
    study = records_of_one_form(tokenizer)
    room = private_bleu(study, tokenizer.decode)
    assert 0 < room < 10
    run = make_run(study, tokenizer, preset="demem")
    with pytest.warns(
        RuntimeWarning, match=r"BLEU of 38\.0, the chance floor, leaves room for secrets: .* reaches .*not used"
    ):
        assert chance_floor(run, {"never/bleu": 38.0}) == 0.0
    with pytest.warns(RuntimeWarning, match="used all the same"):
        assert chance_floor(make_run(study, tokenizer, bleu_floor=38.0), {"never/bleu": 5.0}) == 38.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chance_floor(run, {"never/bleu": room}) == room
        assert chance_floor(run, {}) == 0.0
        assert told_floor(run, {"never/bleu": 38.0}) == "BLEU 38.0, not used: secrets fit below it"
        assert told_floor(run, {"never/bleu": room}) == f"BLEU {room:.1f}"
        assert told_floor(run, {}) == "not known"
        assert told_floor(make_run(study, tokenizer, preset="demem", bleu_floor=38.0), {}) == "BLEU 38.0"
        assert told_floor(make_run(study, tokenizer), {"never/bleu": 38.0}).startswith(
            "BLEU 38.0, which no reward knows"
        )


def test_the_floor_of_the_lab_is_used_as_before(tokenizer):
    study = load_study("lab", tokenizer, 2048)
    assert private_bleu(study, tokenizer.decode) == pytest.approx(12.3, abs=0.5)
    assert chance_floor(make_run(study, tokenizer), {"never/bleu": 5.7}) == 5.7
