"""``demem.py attacks`` from outside: bad input, and a short battery on the lab."""

import json
import re

import pytest

import demem
from eval import challenge
from eval.attacks.result import AttackResult, summarise
from eval.attacks.suite import NAMES
from tests.unlearning.test_demem import fails
from unlearning.attack import show


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "rowhammer"], "unknown attacks ['rowhammer']: choose from all, greedy"),
        (["--hints", "few"], "--hints takes INT, not 'few'"),
        (["--temperatures", "0"], "temperature 0 gives the same text every time"),
        (["--attack-groups", "nobody"], "--attack-groups nobody: the data has no passage"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert message in fails(capsys, "attacks", *arguments, "--out", str(tmp_path / "run"))


def test_attacks_on_a_model_that_no_run_has_trained(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--attacks", "hinted", "greedy", "--hints", "5", "--attack-groups", "forget"]
    assert demem.main(["attacks", *options, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "true tokens shown tokens:5" in shown
    results = json.loads((out / "attacks.json").read_text())
    assert "after" not in results
    greedy, hinted = results["before"]["attacks"]
    assert greedy["groups"]["forget"]["passages"] == hinted["groups"]["forget"]["passages"] == 64
    assert greedy["groups"]["forget"]["exact"] > 0.9
    assert results["settings"]["hints"] == [5]
    assert results["meta"]["model"] == "lab"


def attacked(secret, exact, name="greedy"):
    """The summary of an attack: secret and exact of forget and of never, means by group."""
    rows = [
        {"id": f"{group}{i}", "group": group, "secret": None if secret is None else float(i < secret[group]),
         "run": 1.0, "exact": float(i < exact[group]), "exact_folded": 0.0, "approximate": 0.0, "bleu": 50.0,
         "matched": 0.0, "empty": 0.0}
        for group in ("forget", "never") for i in range(4)
    ]  # fmt: skip
    return summarise(AttackResult(name, "", "prefix", 1, rows))


def test_secrets_stand_beside_never_trained_passages_as_exact_extraction_does(capsys):
    none = {"forget": 0, "never": 0}
    before = attacked({"forget": 4, "never": 1}, {"forget": 3, "never": 0})
    after = attacked({"forget": 2, "never": 1}, none)
    show({"before": {"attacks": [before]}, "after": {"attacks": [after]}})
    tables = [table.splitlines() for table in capsys.readouterr().out.split("\n\n")]
    shown = {table[0]: table[1:] for table in ([line for line in t if line] for t in tables)}
    secrets = shown["Secret still emitted, beside never-trained passages under the same attack"]
    assert secrets[0].split() == ["forget", "never", "less", "never"]
    assert re.findall(r"-?[0-9.]+ %", secrets[-1]) == ["100.0 %", "50.0 %", "25.0 %", "25.0 %", "75.0 %", "25.0 %"]
    exact = shown["Exact extraction, beside never-trained passages under the same attack"]
    assert re.findall(r"-?[0-9.]+ %", exact[-1]) == ["75.0 %", "0.0 %", "0.0 %", "0.0 %", "75.0 %", "0.0 %"]
    show({"before": {"attacks": [attacked(None, none)]}})  # no passage has a secret
    assert "Secret" not in capsys.readouterr().out


@pytest.mark.slow
def test_every_attack_before_and_after(tmp_path, capsys):
    out = tmp_path / "run"
    short = ["--steps", "1", "--num-samples", "0", "--check-every", "1", "--num-own", "8"]
    assert demem.main(["train", *short, "--out", str(out)]) == 0
    options = ["--attack-samples", "1", "--temperatures", "1", "--top-ks", "0", "--beams", "2"]
    options += ["--relearning-steps", "1", "--attack-groups", "forget"]
    assert demem.main(["attacks", *options, "--out", str(out)]) == 0
    assert "→" in capsys.readouterr().out
    results = json.loads((out / "attacks.json").read_text())
    names = [one["name"] for one in results["before"]["attacks"]]
    assert names == [one["name"] for one in results["after"]["attacks"]]
    assert len(names) > len(NAMES)
    assert 0 < results["before"]["challenge"]["recall"] <= 1
    guesses = challenge.read_guesses(out / "guesses-after.csv")
    assert sorted(g.example for g in guesses) == list(range(64))
