"""Files for others: open-unlearning's schema, and the model card."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import pytest

from eval.evaluate import Evaluation
from eval.exports import forget_set_hash, model_card, open_unlearning, write_card, write_open_unlearning
from tests.unlearning.test_notebook import ROWS


def evaluation(exact: float) -> Evaluation:
    records = [
        {"id": f"{group}-{i}", "group": group, "nll_suffix": 0.5 * i, "ma_suffix": 1 - 0.5 * i, "length_truth": 5.0,
         "extraction_strength": 1.0 - i, "output": "secret words", "mia_zlib": {"never": 0.5}.get(group, 0.2 + 0.4 * i)}
        for group in ("forget", "keep", "never") for i in range(2)
    ]  # fmt: skip
    summary = {"forget/exact": exact, "holdout/perplexity": 10 * (2 - exact), "membership/loss_auc": 0.75,
               "forget/exact_after_12": 0.9, "forget/discoverable": exact / 2}  # fmt: skip
    return Evaluation(summary, {}, {}, {}, {}, records)


def test_open_unlearning_s_schema_by_hand(tmp_path):
    write_open_unlearning(tmp_path, evaluation(1.0))
    found = json.loads((tmp_path / "DEMEM_EVAL.json").read_text())
    assert list(found) == sorted(found)
    assert found["forget_prob"]["value_by_index"]["1"] == {"prob": pytest.approx(math.exp(-0.5)), "avg_loss": 0.5}
    assert found["forget_prob"]["agg_value"] == pytest.approx((1 + math.exp(-0.5)) / 2)
    assert found["exact_memorization"]["agg_value"] == 0.75
    # Its loop ends at the last token, right or wrong. It gives 1 - 4/5, and our definition gives 0.
    assert [v["score"] for v in found["extraction_strength"]["value_by_index"].values()] == [1.0, pytest.approx(0.2)]
    assert found["mia_zlib"]["agg_value"] == found["mia_zlib"]["auc"] == 0.5  # 0.2 and 0.6 against 0.5 and 0.5
    assert found["mia_zlib"]["forget"]["value_by_index"]["1"] == {"score": pytest.approx(0.6)}
    assert found["mia_zlib"]["holdout"]["agg_value"] == 0.5
    assert "mia_loss" not in found  # its statistic is not in these records, and ours is another
    assert "keep_exact_memorization" in found
    summary = json.loads((tmp_path / "DEMEM_SUMMARY.json").read_text())
    assert summary == {name: metric["agg_value"] for name, metric in found.items()}
    assert "secret" not in (tmp_path / "DEMEM_EVAL.json").read_text()
    assert open_unlearning(Evaluation({}, {}, {}, {}, {}, [])) == {}


def test_the_hash_depends_on_the_passages_and_not_on_their_order():
    lines = sorted(json.dumps([*r.prefix, *r.suffix], separators=(",", ":")) + "\n" for r in ROWS)
    assert forget_set_hash(ROWS) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert forget_set_hash(ROWS[::-1]) == forget_set_hash(ROWS)
    assert forget_set_hash(ROWS[:2]) != forget_set_hash(ROWS)


def test_the_card_states_the_method_the_numbers_and_the_limits(tmp_path):
    card = model_card(
        base="some/model", method="DeMem", passages=ROWS, thresholds={"exact": 0.05}, before=evaluation(1.0),
        after=evaluation(0.0), meta={"commit": "abc123", "seed": 0},
    )  # fmt: skip
    write_card(tmp_path, card)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\n")
    assert "base_model: some/model" in text
    assert forget_set_hash(ROWS) in text
    assert "| forget/exact | 1 | 0 |" in text
    for weak in ("| forget/exact_after_12 | 0.9 | 0.9 |", "forget/discoverable | 0.5", "membership/loss_auc | 0.75"):
        assert weak in text
    assert "passages; greedy decoding reproduces 0.0 % of them (before: 100.0 %)." in text
    assert "2.000 of the original's" in text
    assert "No proof of deletion" in text
    assert "abc123" in text
    assert "secret" not in text


def test_the_card_of_a_failure_says_that_it_failed():
    card = model_card(
        base="lab",
        method="DeMem",
        passages=ROWS,
        thresholds={},
        before=evaluation(0.97),
        after=evaluation(0.78),
        meta={},
    )
    assert f"to make it stop reproducing {len(ROWS)} passages; greedy decoding still reproduces 78.0 % of them" in card
    assert "no longer" not in card
    verdict = card.partition("## Verdict\n\n")[2]
    assert verdict.startswith("- Not clean: the model was harmed (held-out perplexity over the original's 1.184")
    assert card.index("## Verdict") < card.index("## Before and after")
    leaks = [replace(found, summary={"forget/secret_emitted": share} | found.summary) for share, found in
             ((1.0, evaluation(1.0)), (0.6, evaluation(0.0)))]  # fmt: skip
    card = model_card(
        base="lab", method="DeMem", passages=ROWS, thresholds={}, before=leaks[0], after=leaks[1], meta={}
    )
    assert "; a secret still comes out of 60.0 % of them (before: 100.0 %); greedy decoding reproduces 0.0 %" in card
    rows = [line for line in card.splitlines() if line.startswith("| forget")]
    assert rows[0] == "| forget/secret_emitted | 1 | 0.6 |"
    unknown = Evaluation({}, {}, {}, {}, {}, [])
    card = model_card(base="lab", method="DeMem", passages=ROWS, thresholds={}, before=unknown, after=unknown, meta={})
    assert f"to make it stop reproducing {len(ROWS)} passages.\n" in card
