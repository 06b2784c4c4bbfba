# ruff: noqa: RUF001 (Greek letters are what is meant)
"""Under an estimator of one's own a trace shows what it returned, under its name, and no formula of another."""

import json

import pytest

from ppo.trace import render_trace_page, render_trace_text
from ppo.trace.formulas import quantities_of, symbols_of
from tests.ppo.trace.small import all_rows, assert_formulas_agree, half_and_full, make, trace_of
from tests.ppo.trace.test_page import parsed

NAME = "tests.ppo.trace.small.half_and_full"
LIBRARY_ONLY = {"gamma", "gae_lambda", "policy_lambda", "value_gae_lambda", "group_mean", "group_std", "reward_total",
                "advantage_mean", "advantage_variance", "next_value", "next_raw_advantage",
                "next_return_value"}  # fmt: skip


@pytest.mark.parametrize("head", ["linear", "none"])
def test_what_it_returned_is_shown_as_it_is(head):
    trainer = make(own_advantage=half_and_full, value_head=head, epochs=1)
    trainer.update(trainer.rollout())
    rollout, trace = all_rows(trainer)
    assert trace.own_advantage == NAME
    for b, row in enumerate(trace.rows):
        total = sum(token.reward for token in row.tokens)
        assert row.reward_total == pytest.approx(total, abs=1e-4)
        assert (row.group_mean, row.group_std, row.policy_lambda) == (None, None, None)
        for t, token in enumerate(row.tokens):
            assert token.advantage == pytest.approx(total / 2 - 3 - t, abs=1e-4)
            assert token.return_value == pytest.approx(total + t, abs=1e-4)
            assert (token.td_error, token.raw_advantage) == (None, None)
            critic = (token.value, token.final_value, token.updates[0].value_loss)
            if head == "none":
                assert critic == (None, None, None)
            else:
                assert token.value == float(rollout.old_values[b, t])
                assert None not in critic
    assert not {"advantage_mean", "advantage_variance"} & trace.numbers.keys()
    assert json.loads(json.dumps(trace.to_dict(), allow_nan=False))["own_advantage"] == NAME


@pytest.mark.parametrize("head", ["linear", "none"])
def test_no_formula_is_shown_that_is_not_true(head):
    trace = trace_of(own_advantage=half_and_full, value_head=head, whiten_rewards=True)
    known = {q.key: q for q in quantities_of(trace)}
    assert not {"td_error", "raw_advantage"} & known.keys()
    assert not LIBRARY_ONLY & symbols_of(list(known.values())).keys()
    for key in ("advantage", "return_value"):
        assert (known[key].formula, known[key].code) == ("", NAME)
        assert NAME in known[key].says
        assert "half_and_full" in known[key].label
    assert not any("discount" in q.says or "GAE" in q.says for q in known.values())
    assert ("value" in known, "value_loss" in known) == (head != "none", head != "none")
    assert_formulas_agree(trace)


def test_text_and_page_name_it(trace):
    own = trace_of(own_advantage=half_and_full)
    text, page = render_trace_text(own), render_trace_page(own)
    assert f"Advantages and returns are what {NAME} returned" in " ".join(text.split())
    assert f"Advantages and returns are what {NAME} returned" in page
    for word in ("γ", "λ", "GAE", "TD", "target of the critic", "mean(A)"):
        assert word in render_trace_text(trace)
        assert word not in text
    assert " ε " in text  # PPO's loss reads the advantages as ever
    data = json.loads(parsed(page).scripts[0])
    assert {q["key"] for q in data["quantities"]} == {q.key for q in quantities_of(own)}
    assert "NaN" not in page
    assert "Advantages and returns are what" not in render_trace_text(trace) + render_trace_page(trace)


def test_the_page_of_an_own_estimator_opens(browser, tmp_path):
    path = tmp_path / "trace.html"
    path.write_text(render_trace_page(trace_of(own_advantage=half_and_full, value_head="none")), encoding="utf-8")
    with browser.open(path) as tab:
        labels = tab.run("return [...document.querySelectorAll('#list button span')].map(x => x.textContent)")
        tab.run("document.querySelector('[data-key=advantage]').click()")
        assert NAME in tab.run("return document.getElementById('card').textContent")
        assert tab.errors == tab.requests == []
    assert {"advantage (half_and_full)", "return (half_and_full)"} <= set(labels)
