"""The trace: it changes no bit of the update, its numbers are those that paper and pencil give, it can be undone."""

import json
import math
from dataclasses import replace

import pytest
import torch

from ppo import CheckError, Config, Trainer
from ppo.checkpoint.random_state import random_state
from ppo.trace.distributions import Writer
from tests.fakes import Letters, random_rollout, tiny_gpt2
from tests.processes import torchrun

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=3, learning_rate=3e-2, kl_coef=0.3, seed=4)
GROUPS = {"prompts_per_step": 4, "samples_per_prompt": 2}


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def make(retain=None, reward=id_mean, **changes):
    trainer = Trainer(tiny_gpt2(), PROMPTS, reward, SMALL.replace(**changes), tokenizer=Letters(), retain=retain)
    with torch.no_grad():  # a policy that has moved away from its reference
        trainer.model.transformer.h[0].mlp.c_fc.weight += 0.3
    return trainer


def everything(trainer):
    """Whatever an update may change, by name."""
    state = {f"weight/{name}": p.detach().clone() for name, p in trainer.policy.actor.named_parameters()}
    state |= {f"moment/{name}": x.clone() for name, x in trainer.learner.optimizer.state_tensors().items()}
    state |= {f"rng/{name}": x.clone() for name, x in random_state().items()} | {"rng": trainer.generator.get_state()}
    numbers = (trainer.step, trainer.learner.optimizer.num_updates, trainer.kl.coef)
    return state | {"numbers": torch.tensor(numbers, dtype=torch.float64)}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, equal_nan=True, msg=name)


def all_rows(trainer, **arguments):
    rollout = trainer.rollout()
    return rollout, trainer.trace(rollout, range(len(rollout)), **arguments)


# ---------------------------------------------------------------------- the update is the trainer's own


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"microbatch": 1, "gradient_checkpointing": True, "whiten_rewards": True},
        {"kl_as": "loss", "kl_estimator": "k3", "entropy_coef": 0.1, "value_head": "critic"},
        {"advantage": "grpo", **GROUPS},
        {"train_top_layers": 1, "retain_coef": 0.5, "retain_tokens": 8, "autocast": "bfloat16"},
    ],
)
def test_a_traced_update_is_the_update_to_the_bit(changes):
    retain = [[2, 3, 4, 5, 6, 7]] if "retain_coef" in changes else None
    plain, traced = make(retain, **changes), make(retain, **changes)
    for _ in range(2):
        metrics = plain.update(plain.rollout())
        trace = traced.trace(traced.rollout(), [5, 0], top_k=2)
        assert_same(everything(plain), everything(traced))
        assert {**trace.metrics, "time/update_s": 0} == {**metrics, "time/update_s": 0}
    assert [row.index for row in trace.rows] == [5, 0]
    assert trace.step == 1


@pytest.mark.parametrize("changes", [{}, {"moment_dtype": "bfloat16", "retain_coef": 0.5, "retain_tokens": 8}])
def test_an_undone_trace_leaves_no_mark(changes):
    retain = [[2, 3, 4, 5, 6, 7]] if "retain_coef" in changes else None
    trainer = make(retain, **changes)
    rollout = trainer.rollout()
    for _ in range(2):  # before the first moments, and with some
        before = everything(trainer)
        undone = trainer.trace(rollout, [1], is_undone=True)
        assert_same(before, everything(trainer))
        done = trainer.trace(rollout, [1])
        assert done.rows == undone.rows
        assert any(not torch.equal(before[name], x) for name, x in everything(trainer).items())


def spoil(trainer):
    """Weights that did not sample the rollout any more."""
    with torch.no_grad():
        trainer.model.transformer.wte.weight += torch.randn(trainer.model.transformer.wte.weight.shape)


@pytest.mark.parametrize("is_undone", [False, True])
def test_a_traced_update_asks_for_ratio_one_as_the_update_does(is_undone):
    plain, traced = make(), make()
    for trainer, learn in ((plain, plain.update), (traced, lambda r: traced.trace(r, is_undone=is_undone))):
        rollout = trainer.rollout()
        spoil(trainer)
        for _ in range(2):  # what was refused is refused again
            with pytest.raises(CheckError, match="the first minibatch has a ratio other than 1"):
                learn(rollout)


def test_an_update_after_an_undone_trace_still_asks_for_ratio_one():
    trainer = make()
    rollout = trainer.rollout()
    trainer.trace(rollout, is_undone=True)
    spoil(trainer)
    with pytest.raises(CheckError, match="the first minibatch has a ratio other than 1"):
        trainer.update(rollout)


def test_an_update_that_fails_is_undone_too(monkeypatch):
    trainer = make()
    rollout, before = trainer.rollout(), everything(trainer)
    plain, calls = trainer.learner.optimizer.step, []

    def fails_at_the_third(step):
        calls.append(step)
        if len(calls) == 3:
            raise RuntimeError("third")
        return plain(step)

    monkeypatch.setattr(trainer.learner.optimizer, "step", fails_at_the_third)
    with pytest.raises(RuntimeError, match="third"):
        trainer.trace(rollout, is_undone=True)
    assert_same(before, everything(trainer))


def test_a_gradient_that_is_not_finite_is_shown_as_left_out(monkeypatch):
    trainer = make()
    rollout, plain, calls = trainer.rollout(), trainer.learner.optimizer.step, []

    def fails_at_the_first(step):
        calls.append(step)
        if len(calls) == 1:
            raise FloatingPointError("the gradient is not finite")
        return plain(step)

    monkeypatch.setattr(trainer.learner.optimizer, "step", fails_at_the_first)
    with pytest.warns(RuntimeWarning, match="not finite"):
        trace = trainer.trace(rollout, is_undone=True)
    assert [minibatch.is_skipped for minibatch in trace.minibatches] == [True] + [False] * (len(calls) - 1)
    assert {minibatch.skip_reason for minibatch in trace.minibatches} == {"not finite", ""}
    assert trainer.state.counters.skipped_in_a_row == 0


# ---------------------------------------------------------------------- numbers, by hand


def test_rollout_numbers_are_what_the_definitions_say():
    gamma, lam, beta = 0.9, 0.8, 0.3
    trainer = make(gamma=gamma, gae_lambda=lam, kl_controller="fixed")
    trainer.update(trainer.rollout())  # a critic that says something
    rollout, trace = all_rows(trainer)
    raw = []
    for b, row in enumerate(trace.rows):
        assert [token.id for token in row.tokens] == rollout.samples[b].ids
        assert (row.prompt_ids, row.response) == (rollout.samples[b].prompt_ids, rollout.samples[b].text)
        for t, token in enumerate(row.tokens):
            is_last = t == len(row.tokens) - 1
            assert token.kl == pytest.approx(token.old_logprob - token.ref_logprob, abs=1e-6)
            assert token.token_reward == pytest.approx(id_mean(rollout.samples)[b] if is_last else 0)
            assert token.reward == token.shaped_reward == pytest.approx(token.token_reward - beta * token.kl, abs=1e-6)
            next_value = 0 if is_last else row.tokens[t + 1].value
            assert token.td_error == pytest.approx(token.reward + gamma * next_value - token.value, abs=1e-5)
            later = [(gamma * lam) ** k * x.td_error for k, x in enumerate(row.tokens[t:])]
            assert token.raw_advantage == pytest.approx(sum(later), abs=1e-5)
            assert token.return_value == pytest.approx(token.raw_advantage + token.value, abs=1e-5)
            assert token.old_probability == pytest.approx(math.exp(token.old_logprob))
            raw.append(token.raw_advantage)
    mean = sum(raw) / len(raw)
    variance = sum((x - mean) ** 2 for x in raw) / len(raw)
    assert trace.numbers["advantage_mean"] == pytest.approx(mean, abs=1e-5)
    assert trace.numbers["advantage_variance"] == pytest.approx(variance, rel=1e-5)
    used = [token.advantage for row in trace.rows for token in row.tokens]
    assert used == pytest.approx([(x - mean) / math.sqrt(variance + 1e-8) for x in raw], abs=1e-4)
    assert sum(used) / len(used) == pytest.approx(0, abs=1e-5)
    assert sum(x * x for x in used) / len(used) == pytest.approx(1, abs=1e-4)
    assert trace.numbers["num_tokens"] == len(used)


def test_a_response_that_can_be_done_in_the_head():
    """Rewards 0 0 1, the critic says .5, gamma = lambda = 1: only the last token brought more than expected."""
    trainer = make(prompts_per_step=1, minibatch=1, gae_lambda=1.0, whiten_advantages=False, response_length=3)
    reward, half = torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5)
    rollout = replace(
        random_rollout([3]), kl=torch.zeros(1, 3), rewards=reward, token_rewards=reward, old_values=half,
        advantages=half, returns=torch.ones(1, 3), scores=torch.ones(1),
    )  # fmt: skip
    (row,) = trainer.trace(rollout).rows
    assert [token.td_error for token in row.tokens] == [0, 0, 0.5]
    assert [token.raw_advantage for token in row.tokens] == [0.5, 0.5, 0.5]
    assert [token.return_value for token in row.tokens] == [1, 1, 1]
    assert [token.shaped_reward for token in row.tokens] == [0, 0, 1]
    for (
        token
    ) in row.tokens:  # the head starts at 0, a step away from .5 of .2 is allowed: .3, whose square is the worse
        first = token.updates[0]
        assert (first.new_value, first.clipped_value) == pytest.approx((0.0, 0.3))
        assert first.value_loss == pytest.approx(0.5 * 1.0**2)
        assert first.value_gradient == pytest.approx(0.1 * (0.0 - 1.0) / 3)
        assert not first.is_value_clipped


def test_groups_are_compared_with_themselves():
    for name in ("grpo", "rloo"):
        rollout, trace = all_rows(make(advantage=name, **GROUPS))
        for row in trace.rows:
            a, b = (float(rollout.rewards[i].sum()) for i in (row.index, row.index ^ 1))
            expected = a - b if name == "rloo" else ((a - b) / 2) / (abs(a - b) / 2 + 1e-4)
            assert [token.advantage for token in row.tokens] == pytest.approx([expected] * len(row.tokens), abs=1e-4)
            assert row.reward_total == pytest.approx(a)
            assert {token.value for token in row.tokens} == {None}
            assert row.tokens[0].updates[0].value_gradient is None


def test_the_first_minibatch_has_ratio_one_and_every_row_is_seen_once_an_epoch():
    _, trace = all_rows(make())
    assert len(trace.minibatches) == 3 * 2
    assert [(m.epoch, m.index) for m in trace.minibatches] == [(e, i) for e in range(3) for i in range(2)]
    num_tokens = sum(len(row.tokens) for row in trace.rows)
    for epoch in range(3):
        assert sum(m.num_tokens for m in trace.minibatches if m.epoch == epoch) == num_tokens
    for row in trace.rows:
        for token in row.tokens:
            assert [trace.minibatches[u.minibatch].epoch for u in token.updates] == [0, 1, 2]
            assert len({u.minibatch for u in token.updates}) == 3
            if token.updates[0].minibatch == 0:
                assert token.updates[0].ratio == pytest.approx(1, abs=1e-5)
                assert token.updates[0].logprob == pytest.approx(token.old_logprob, abs=1e-5)
    assert sum(token.updates[0].minibatch == 0 for row in trace.rows for token in row.tokens[:1]) == 4


def test_the_clip_cuts_the_gradient_on_both_sides_and_nowhere_else():
    """Autograd's gradient against Schulman et al. 2017, eq. 7, written as cases."""
    _, trace = all_rows(make())
    sides, clipped_values = [], 0
    for token in (token for row in trace.rows for token in row.tokens):
        for update in token.updates:
            count, a, ratio = trace.minibatches[update.minibatch].num_tokens, token.advantage, update.ratio
            assert ratio == pytest.approx(math.exp(update.logprob - token.old_logprob), rel=1e-5)
            is_cut = (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
            assert update.is_clipped == is_cut
            assert update.clip_side == ("" if not is_cut else "above" if a > 0 else "below")
            assert update.unclipped_gradient == pytest.approx(-a * ratio / count, rel=1e-4, abs=1e-8)
            assert update.logprob_gradient == pytest.approx(0 if is_cut else -a * ratio / count, rel=1e-4, abs=1e-8)
            held = min(max(ratio, 0.8), 1.2)
            assert update.policy_loss == pytest.approx(-min(a * ratio, a * held), rel=1e-4, abs=1e-6)
            v, old, target = update.new_value, token.value, token.return_value
            near = old + min(max(v - old, -0.2), 0.2)
            is_far = (near - target) ** 2 > (v - target) ** 2 + 1e-6
            assert update.value_loss == pytest.approx(0.5 * max((v - target) ** 2, (near - target) ** 2), abs=1e-4)
            expected = 0 if is_far else 0.1 * (v - target) / count
            assert update.value_gradient == pytest.approx(expected, rel=1e-3, abs=1e-7)
            sides.append(update.clip_side)
            clipped_values += update.is_value_clipped
    assert {"", "above", "below"} == set(sides)
    assert clipped_values > 0


def test_kl_as_a_loss_is_in_the_gradient_of_the_token():
    _, trace = all_rows(make(kl_as="loss", kl_estimator="k2", kl_controller="fixed"))
    for token in (token for row in trace.rows for token in row.tokens):
        assert token.reward == token.token_reward
        for update in token.updates:
            count = trace.minibatches[update.minibatch].num_tokens
            pull = 0 if update.is_clipped else -token.advantage * update.ratio
            expected = (pull + 0.3 * (update.logprob - token.ref_logprob)) / count
            assert update.logprob_gradient == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_k": 5, "min_response_length": 2}])
def test_alternatives_are_the_sampler_s_distribution(changes):
    trainer = make(**changes)
    _, trace = all_rows(trainer, top_k=3)
    for row in trace.rows:
        for t, token in enumerate(row.tokens):
            drawn = [a for a in token.alternatives if a.id == token.id]
            assert [a.before for a in drawn] == pytest.approx([token.old_probability], abs=1e-4)
            assert [a.after for a in drawn] == pytest.approx([token.final_probability], abs=1e-4)
            before = [a.before for a in token.alternatives]
            assert before == sorted(before, reverse=True)
            assert 3 <= len(before) <= 7
            assert sum(before) <= 1 + 1e-5
            assert sum(a.after for a in token.alternatives) <= 1 + 1e-5
            if t < trainer.config.min_response_length:
                assert 1 not in [a.id for a in token.alternatives]  # EOS has no chance there
    whole = make(**changes)
    _, trace = all_rows(whole, top_k=1000)
    for token in (token for row in trace.rows for token in row.tokens):
        assert sum(a.before for a in token.alternatives) == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------------- where an update ends early; what is refused


def test_an_update_that_ends_early_and_one_that_is_skipped():
    _, trace = all_rows(make(stop_kl_per_token=1e-4))
    assert trace.metrics["update/stopped_early"] == 1
    assert len(trace.minibatches) == trace.metrics["update/minibatches"] < 6
    assert any(not token.updates for row in trace.rows for token in row.tokens) or len(trace.minibatches) > 1
    _, trace = all_rows(make(max_mean_ratio=0.5))
    assert [m.is_skipped for m in trace.minibatches] == [True] * 6
    assert {m.skip_reason for m in trace.minibatches} == {"ratio"}
    assert {m.grad_norm for m in trace.minibatches} == {None}
    for token in (token for row in trace.rows for token in row.tokens):
        assert token.final_logprob == pytest.approx(token.old_logprob, abs=1e-5)


def test_what_cannot_be_traced_is_refused_before_any_work():
    trainer = make()
    rollout, before = trainer.rollout(), everything(trainer)
    for rows in ([], [8], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"rows=.* must be different numbers from 0 to 7"):
            trainer.trace(rollout, rows)
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        trainer.trace(rollout, top_k=0)
    with pytest.raises(ValueError, match="no token_rewards"):
        trainer.trace(replace(rollout, token_rewards=None))
    assert_same(before, everything(trainer))


def test_a_trace_is_json_and_numbers_survive_it():
    trainer = make()
    _, trace = all_rows(trainer)
    read = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    token = read["rows"][2]["tokens"][0]
    assert torch.tensor(token["old_logprob"]) == torch.tensor(trace.rows[2].tokens[0].old_logprob)
    assert token["updates"][1]["ratio"] == pytest.approx(trace.rows[2].tokens[0].updates[1].ratio)
    assert Config.from_dict(read["config"]) == trainer.config
    odd = replace(trace, numbers={"x": math.inf})
    assert odd.to_dict()["numbers"] == {"x": None}


class Words:
    """A tokenizer that writes a space only between two words, as sentencepiece's do; 9 and 10 are the halves of é."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        pieces = [f" w{i}" if i not in (9, 10) else {9: b"\xc3", 10: b"\xa9"}[i] for i in token_ids]
        joined = b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces)
        return joined.decode(errors="replace").removeprefix(" ")


def test_a_token_is_written_as_it_stands_behind_others():
    writer = Writer(Words())
    assert writer.piece([], 3) == "w3"
    assert writer.piece([2], 3) == " w3"
    assert writer.piece([2], 9) == "\ufffd"
    assert Writer(None).piece([2], 3) == ""


CASE = """
import torch, ppo
from tests.ppo.trace.test_update import id_mean, PROMPTS, SMALL, tiny_gpt2
with ppo.process_group():
    trainer = ppo.Trainer(tiny_gpt2(), PROMPTS, id_mean, SMALL.replace(epochs=1))
    try:
        trainer.trace(trainer.rollout())
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_several_processes_are_refused(tmp_path):
    (tmp_path / "case.py").write_text(CASE)
    done = torchrun(str(tmp_path / "case.py"))
    assert done.stdout.count("a trace is taken in one process") == 2, done.stderr
