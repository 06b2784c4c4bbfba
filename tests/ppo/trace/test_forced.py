"""A trace at forced states: every action once, with its count, and numbers that a plain forward gives."""

import json
import math
from dataclasses import replace

import pytest
import torch

from ppo import Trainer
from ppo.trace import StatesTold, render_trace_page, render_trace_text
from ppo.trace.columns import WIDTH
from ppo.trace.forced_text import opening_state
from ppo.trace.formulas import quantities_of
from ppo.trace.states import Notes
from ppo.trace.symbols import Quantity
from tests.fakes import Letters, tiny_gpt2
from tests.ppo.test_forced_states import CONFIG, Forced, K, likes_even, trainer
from tests.ppo.trace.small import assert_agrees, assert_formulas_agree, recomputed
from tests.ppo.trace.test_page import parsed

FORCED = CONFIG.replace(kl_coef=0.3, kl_controller="fixed", policy_clip=0.05)
OWN = Quantity("luck", "luck", "l", "state", "How lucky a state is.", "nowhere")
JUDGED = Quantity("advantage", "advantage", "Âₜ", "advantage", "Luck times a third.", "nowhere", "{luck} / 3")


def lucky(sample, text):
    return Notes(text, {"luck": [3.0 * t for t in range(len(text))]}, "a lucky text")


def by_luck(rewards, values, mask, samples):
    """An estimator: the place of each action's state."""
    return (torch.arange(mask.shape[1]) // K).float() * mask, rewards


def traced(told=None, advantage=likes_even, model=None, config=FORCED, change=None, **more):
    one = trainer(change, config=config, model=model or tiny_gpt2(), tokenizer=Letters(), advantage=advantage)
    with torch.no_grad():  # move the policy away from its reference
        one.model.transformer.h[0].mlp.c_fc.weight += 0.3
    rollout = one.rollout()
    return one, rollout, one.trace(rollout, range(len(rollout)), told=told, **more)


def test_every_draw_is_in_one_entry_of_its_state():
    _, rollout, trace = traced()
    assert trace.is_forced
    assert trace.numbers["num_states"] * K == trace.numbers["num_tokens"] == sum(len(s.ids) for s in rollout.samples)
    for row, sample in zip(trace.rows, rollout.samples, strict=True):
        assert [state.id for state in row.states] == sample.row["text"]
        assert sorted(place for token in row.tokens for place in token.draws) == list(range(len(sample.ids)))
        for s, state in enumerate(row.states):
            actions = [row.tokens[t] for t in state.actions]
            assert {a.state for a in actions} == {s}
            assert state.num_drawn == sum(len(a.draws) for a in actions) == K
            assert [len(a.draws) for a in actions] == sorted((len(a.draws) for a in actions), reverse=True)
            for action in actions:
                assert {sample.ids[place] for place in action.draws} == {action.id}
                assert {place // K for place in action.draws} == {s}
    doubles = [t for row in trace.rows for t in row.tokens if len(t.draws) > 1]
    assert doubles  # some token was drawn twice at a state


def test_the_numbers_of_states_and_actions_are_those_of_plain_forwards():
    one, rollout, trace = traced(model=tiny_gpt2().double())
    before = tiny_gpt2().double().eval()
    with torch.no_grad():
        before.transformer.h[0].mlp.c_fc.weight += 0.3
    for row, sample in zip(trace.rows, rollout.samples, strict=True):
        for s, state in enumerate(row.states):
            ids = torch.tensor([sample.prompt_ids + sample.row["text"][:s]])
            with torch.no_grad():
                old, new = (model(ids).logits[0, -1] for model in (before, one.model))
            assert state.numbers["heat"] == 1.5
            assert state.numbers["text_p"] == pytest.approx(float(torch.softmax(old, -1)[state.id]), abs=1e-6)
            assert state.numbers["final_text_p"] == pytest.approx(float(torch.softmax(new, -1)[state.id]), abs=1e-6)
            hot, hot_after = torch.log_softmax(old / 1.5, -1), torch.log_softmax(new / 1.5, -1)
            for action in (row.tokens[t] for t in state.actions):
                assert action.old_logprob == pytest.approx(float(hot[action.id]), abs=1e-9)
                assert action.final_logprob == pytest.approx(float(hot_after[action.id]), abs=1e-9)
                assert action.reward == pytest.approx(-0.3 * (action.old_logprob - action.ref_logprob), abs=1e-9)
                assert action.advantage == 1 - 2 * (action.id % 2)
            known = {a.id: a for a in state.alternatives}
            assert max(known.values(), key=lambda a: a.before).before == pytest.approx(float(hot.exp().max()), abs=1e-6)
            assert known[state.id].after == pytest.approx(float(hot_after[state.id].exp()), abs=1e-6)


def test_the_draws_add_up_to_the_loss_and_the_clip_cuts():
    _, _, trace = traced()
    sides = set()
    for number, minibatch in enumerate(trace.minibatches):
        total = 0.0
        for token in (token for row in trace.rows for token in row.tokens):
            for update in token.updates:
                if update.minibatch == number:
                    held = min(max(update.ratio, 0.95), 1.05)
                    loss = -min(token.advantage * update.ratio, token.advantage * held)
                    assert update.policy_loss == pytest.approx(loss, abs=1e-6)
                    total += len(token.draws) * loss
                    sides.add(update.clip_side)
        assert minibatch.statistics["policy/loss"] == pytest.approx(total / minibatch.num_tokens, abs=1e-6)
    assert sides == {"", "above", "below"}


def test_a_traced_update_at_forced_states_has_the_bits_of_an_untraced_one():
    one, _, _ = traced()
    other = trainer(config=FORCED, tokenizer=Letters())
    with torch.no_grad():
        other.model.transformer.h[0].mlp.c_fc.weight += 0.3
    other.update(other.rollout())
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("told", [None, StatesTold([OWN, JUDGED], lucky)])
def test_every_formula_gives_its_number(told):
    _, _, trace = traced(told, by_luck)
    assert_formulas_agree(trace)
    known = {q.key: q for q in quantities_of(trace)}
    assert list(known)[:2] == ["text_p", "heat"]
    text, page = render_trace_text(trace), render_trace_page(trace)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "state by state" in text
    assert "an episode of one token" in " ".join(text.split())
    unknown = "how it computes them is not known here"
    if told is None:
        assert known["advantage"].formula == ""
        assert unknown in " ".join(text.split())
    else:
        assert (known["luck"], known["advantage"]) == (OWN, JUDGED)
        assert [row.states[-1].numbers["luck"] for row in trace.rows] == [3.0 * (len(r.states) - 1) for r in trace.rows]
        assert unknown not in text + page
        assert "a lucky text" in text
        assert "a lucky text" in page
    data = json.loads(parsed(page).scripts[0])
    assert "NaN" not in page
    assert data["colours"] == [q.key for q in known.values() if q.section == "state"] + ["entropy", "final_text_p"]
    assert json.loads(json.dumps(trace.to_dict(), allow_nan=False))["rows"][0]["states"][0]["num_drawn"] == K


def test_the_score_stands_at_the_last_draw_alone():
    one = Trainer(
        tiny_gpt2(), [{"prompt": [3], "text": [4, 5]}], lambda s: [2.0] * len(s),
        CONFIG.replace(prompts_per_step=1, minibatch=1), sampler=same_action, advantage=likes_even, tokenizer=Letters(),
    )  # fmt: skip
    (row,) = one.trace(one.rollout()).rows
    assert [(t.state, t.draws, t.token_reward) for t in row.tokens] == [
        (0, [0, 1, 2], 0.0), (1, [3, 4], 0.0), (1, [5], 2.0),
    ]  # fmt: skip


def same_action(policy, prompts, *, seed, request_ids):
    """A sampler: token 7 three times at each of the states."""
    made = Forced()(policy, prompts, seed=seed, request_ids=request_ids)
    made = replace(made, tokens=7 * made.mask)
    found = policy.measure(made)
    return replace(made, logprobs=found.logprobs, entropy=found.entropy)


def test_notes_of_another_size_are_refused():
    with pytest.raises(ValueError, match="give one for each of its"):
        traced(StatesTold([OWN], lambda sample, text: Notes(text, {"luck": [0.0]})))


def test_reading_begins_where_the_update_moved_the_true_token_the_furthest():
    _, _, trace = traced()
    for row in trace.rows:
        moved = [abs(s.numbers["final_text_p"] - s.numbers["text_p"]) for s in row.states]
        assert moved[opening_state(row)] == max(moved)


def test_the_page_shows_states_and_lets_an_action_be_chosen(browser, tmp_path):
    _, _, trace = traced(StatesTold([OWN, JUDGED], lucky), by_luck)
    path = tmp_path / "trace.html"
    path.write_text(render_trace_page(trace), encoding="utf-8")
    row, s = trace.rows[0], opening_state(trace.rows[0])
    with browser.open(path) as tab:
        assert tab.run("return document.querySelectorAll('#strip [role=option]').length") == len(row.states)
        assert tab.run("return document.getElementById('token').textContent").startswith(f"State {s}, where")
        for _ in range(len(trace.rows) + 1):
            tab.press("Tab")
        tab.press("Home")
        assert tab.run("return document.activeElement.id") == "t0"
        times = "return [...document.querySelectorAll('.state tr td:nth-child(2)')].map(x => Number(x.textContent))"
        for place, state in enumerate(row.states):
            assert tab.run(times)[: len(state.actions)] == [len(row.tokens[t].draws) for t in state.actions]
            assert sum(tab.run(times)) == K
            last = state.actions[-1]
            tab.click(f"[data-action='{last}']")
            assert tab.run("return document.activeElement.dataset.action") == str(last)
            shown = tab.run("return document.querySelector('#list [data-key=old_logprob] b').textContent")
            assert float(shown.replace("\N{MINUS SIGN}", "-")) == pytest.approx(row.tokens[last].old_logprob, abs=1e-4)
            tab.run("document.querySelector('#list [data-key=reward]').click()")
            card = tab.run("return [...document.querySelectorAll('#card .formula')].map(x => x.textContent)")
            assert_agrees(card[1].removeprefix("= "), card[2].removeprefix("= "), "reward")
            assert math.isfinite(recomputed(card[1].removeprefix("= ")))
            tab.run(f"document.getElementById('t{place}').focus()")
            tab.press("ArrowRight")
        assert tab.run("return document.activeElement.id") == f"t{len(row.states) - 1}"
        assert tab.errors == tab.requests == []
    with browser.open(path, width=375, height=720, is_phone=True) as tab:
        assert tab.run("return document.documentElement.scrollWidth") <= 375
