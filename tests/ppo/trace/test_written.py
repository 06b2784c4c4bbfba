# ruff: noqa: RUF001 (Greek letters are what is meant)
"""Tokens that an environment wrote stand in their places, marked, and without a number."""

import json
import math
import re
from dataclasses import fields
from statistics import fmean, pvariance

import pytest

from ppo.trace import TokenTrace, render_trace_page, render_trace_text
from ppo.trace.columns import WIDTH
from ppo.trace.formulas import quantities_of
from ppo.trace.text import opening_token
from tests.ppo.trace.small import (
    GROUPS,
    RESPONSES,
    all_rows,
    assert_agrees,
    assert_formulas_agree,
    half_and_full,
    make,
    trace_of,
    with_a_tool,
)
from tests.ppo.trace.test_page import WALK, parsed


@pytest.fixture(scope="module")
def written():
    """All rows of a step in which a tool wrote a part."""
    return all_rows(make(sampler=with_a_tool))[1]


NUM_WRITTEN = sum(i >= 14 for response in RESPONSES for i in response)
NO_NUMBERS = ("id", "text", "is_action", "alternatives", "updates", "state", "draws")
NUMBERS = [f.name for f in fields(TokenTrace) if f.name not in NO_NUMBERS]


def test_a_written_token_is_marked_in_the_object_and_in_its_json(written):
    read = json.loads(json.dumps(written.to_dict(), allow_nan=False))
    assert [[token["id"] for token in row["tokens"]] for row in read["rows"]] == RESPONSES
    for row, response in zip(read["rows"], RESPONSES, strict=True):
        assert [token["is_action"] for token in row["tokens"]] == [i < 14 for i in response]
        assert (row["num_actions"], len(row["tokens"])) == (sum(i < 14 for i in response), len(response))
        for token in row["tokens"]:
            is_number = [token[name] is not None for name in NUMBERS]
            assert all(is_number) if token["is_action"] else not any(is_number)
            assert len(token["updates"]) == (3 if token["is_action"] else 0)
            assert bool(token["alternatives"]) == token["is_action"]
    flat = [i for response in RESPONSES for i in response]
    assert read["numbers"]["num_tokens"] == sum(i < 14 for i in flat)
    assert read["numbers"]["num_written"] == NUM_WRITTEN
    assert sum(m["num_tokens"] for m in read["minibatches"] if m["epoch"] == 0) == sum(i < 14 for i in flat)


def test_without_an_environment_every_token_is_an_action_and_an_old_trace_can_be_read(trace):
    read = trace.to_dict()
    assert "num_written" not in read["numbers"]
    token = read["rows"][0]["tokens"][0]
    assert token.pop("is_action") is True
    assert TokenTrace(**token).is_action
    assert read.pop("own_advantage") == ""
    assert type(trace)(**read).own_advantage == ""


def plain_gae(rewards, values, gamma, lam):
    """TD errors and advantages of one response, given its actions alone."""
    errors = [r + gamma * v - values[t] for t, (r, v) in enumerate(zip(rewards, [*values[1:], 0.0], strict=True))]
    return errors, [sum((gamma * lam) ** k * e for k, e in enumerate(errors[t:])) for t in range(len(errors))]


@pytest.mark.parametrize("changes", [{}, {"whiten_rewards": True}, {"gae_length_alpha": 0.6, "value_gae_lambda": 0.3}])
def test_gae_reaches_over_what_was_written(changes):
    gamma, lam = 0.9, 0.8
    trainer = make(sampler=with_a_tool, gamma=gamma, gae_lambda=lam, kl_controller="fixed", **changes)
    trainer.update(trainer.rollout())  # after it the critic's values are not 0
    rollout, trace = all_rows(trainer)
    raw, given = [], [row.tokens[t].shaped_reward for row in trace.rows for t in row.actions]
    for row in trace.rows:
        actions = [row.tokens[t] for t in row.actions]
        assert [x.token_reward for x in actions] == pytest.approx([0.0] * (len(actions) - 1) + [row.score])
        rewards = [x.token_reward - 0.3 * (x.old_logprob - x.ref_logprob) for x in actions]
        assert [x.shaped_reward for x in actions] == pytest.approx(rewards, abs=1e-6)
        if "whiten_rewards" in changes:
            mean, scale = fmean(given), math.sqrt(pvariance(given) + 1e-8)
            rewards = [(x - mean) / scale + mean for x in rewards]
        assert [x.reward for x in actions] == pytest.approx(rewards, abs=1e-5)
        values = [x.value for x in actions]
        policy = max(0.0, 1 - 1 / (0.6 * len(actions))) if "gae_length_alpha" in changes else lam
        critic = 0.3 if "value_gae_lambda" in changes else lam
        errors, advantages = plain_gae(rewards, values, gamma, policy)
        returns = [a + v for a, v in zip(plain_gae(rewards, values, gamma, critic)[1], values, strict=True)]
        assert [x.td_error for x in actions] == pytest.approx(errors, abs=1e-5)
        assert [x.raw_advantage for x in actions] == pytest.approx(advantages, abs=1e-5)
        assert [x.return_value for x in actions] == pytest.approx(returns, abs=1e-5)
        raw += advantages
    used = [row.tokens[t].advantage for row in trace.rows for t in row.actions]
    assert used == pytest.approx([(x - fmean(raw)) / math.sqrt(pvariance(raw) + 1e-8) for x in raw], abs=1e-4)
    assert rollout.advantages[rollout.generation.action_mask].tolist() == used


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"whiten_rewards": True, "kl_estimator": "k3", "gamma": 0.9, "value_gae_lambda": 0.5},
        {"gae_length_alpha": 0.6, "loss_mean": "sequences", "kl_as": "loss", "kl_estimator": "k2"},
        {"advantage": "reinforce++_baseline", "loss_mean": "constant", **GROUPS},
        {"advantage": "rloo", **GROUPS},
        {"policy_loss": "gspo"},
        {"own_advantage": half_and_full},
    ],
)
def test_every_formula_of_an_action_gives_its_number(changes):
    trace = trace_of(sampler=with_a_tool, **changes)
    assert any(q.key == "token_reward" and q.formula for q in quantities_of(trace))
    assert_formulas_agree(trace)
    assert "NaN" not in render_trace_page(trace)


# ---------------------------------------------------------------------- as text


def test_the_text_tells_both_counts_and_marks_what_was_written(written):
    text = render_trace_text(written)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "19 tokens of 8 responses" in text
    assert f"An environment wrote {NUM_WRITTEN} more tokens" in text.replace("\n  ", " ")
    assert "5 tokens (3 by the policy)" in text
    assert "2 tokens, cut" in text  # nothing was written in it
    tables = [t for t in text.split("\n\n") if t.startswith("  t token")]
    for row, *pair in zip(written.rows, tables[::2], tables[1::2], strict=True):
        for table in pair:
            lines = table.splitlines()[1 : len(row.tokens) + 1]
            assert ["written by the environment" in line for line in lines] == [not x.is_action for x in row.tokens]
            for line, token in zip(lines, row.tokens, strict=True):
                assert token.is_action or not re.search(r"\d", line[3:])


def test_the_first_token_to_be_read_is_an_action(written):
    assert all(row.tokens[opening_token(row)].is_action for row in written.rows)


def test_a_plain_trace_says_nothing_of_an_environment(trace, page):
    assert "environment" not in render_trace_text(trace)
    assert "written by the environment: nobody chose" not in page


# ---------------------------------------------------------------------- as a page


def test_the_page_marks_what_was_written_and_its_formulas_reach_over_it(browser, tmp_path, written):
    path = tmp_path / "trace.html"
    path.write_text(render_trace_page(written), encoding="utf-8")
    with browser.open(path) as tab:
        found = tab.run(WALK)
        seen = "return [...document.querySelectorAll('#strip span')].map(x => [x.className, x.ariaLabel])"
        for r, row in enumerate(written.rows):
            chips = tab.run(f"document.querySelectorAll('#rows button')[{r}].click(); {seen}")
            assert ["written" in name.split() for name, _ in chips] == [not token.is_action for token in row.tokens]
            assert ["written by the environment" in label for _, label in chips] == [
                not token.is_action for token in row.tokens
            ]
        assert tab.run("return document.querySelector('.legend').textContent").count("written by the environment") == 1
        tab.run("document.querySelectorAll('#rows button')[0].click(); document.getElementById('t1').click()")
        assert tab.run("return document.getElementById('token').textContent").endswith("written by the environment")
        assert tab.run("return document.querySelectorAll('#alternatives tr').length") == 0
        tab.run("document.getElementById('t0').click(); document.querySelector('[data-key=raw_advantage]').click()")
        assert tab.run("return [...document.querySelectorAll('#strip .used')].map(x => x.id)") == ["t3"]
        assert tab.errors == tab.requests == []
    sections = {q.key: q.section for q in quantities_of(written)}
    for r, moment, t, key, _, formula, result, in_list in found:
        if written.rows[r].tokens[t].is_action:
            assert result.endswith("= " + in_list)
            if formula:
                assert_agrees(formula.removeprefix("= "), in_list, key)
        else:
            assert (formula, in_list) == ("", "–")
        assert moment in range(1, 4) or sections[key] not in ("policy", "value")
    per_moment = {m: {key for _, moment, _, key, *_ in found if moment == m} for m in range(5)}
    assert len(per_moment[1]) > len(per_moment[0])


def test_the_data_of_the_page_holds_no_number_of_a_written_token(written):
    data = json.loads(parsed(render_trace_page(written)).scripts[0])
    tokens = [token for row in data["rows"] for token in row["tokens"]]
    assert sum(bool(token.get("written")) for token in tokens) == NUM_WRITTEN
    for token in tokens:
        if token.get("written"):
            assert token["n"] == token["s"] == token["a"] == token["u"] == []
