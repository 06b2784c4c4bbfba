"""The numbers of a trace are those that the definitions give by hand."""

import math
from dataclasses import replace

import pytest
import torch

from tests.fakes import random_rollout
from tests.ppo.trace.small import GROUPS, all_rows, id_mean, make


def test_rollout_numbers_are_what_the_definitions_say():
    gamma, lam, beta = 0.9, 0.8, 0.3
    trainer = make(gamma=gamma, gae_lambda=lam, kl_controller="fixed")
    trainer.update(trainer.rollout())  # after it the critic's values are not 0
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


def test_a_response_with_numbers_that_can_be_computed_in_the_head():
    """Rewards 0 0 1, all values .5, gamma = lambda = 1: only the last token brought more than expected."""
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
    # The value head starts at 0, so the new value is 0. The clip allows a move of .2 away from .5, so the clipped value
    # is .3. The value 0 is further from the return 1, so its error is the larger one.
    for token in row.tokens:
        first = token.updates[0]
        assert (first.new_value, first.clipped_value) == pytest.approx((0.0, 0.3))
        assert first.value_loss == pytest.approx(0.5 * 1.0**2)
        assert first.value_gradient == pytest.approx(0.1 * (0.0 - 1.0) / 3)
        assert not first.is_value_clipped


def test_group_advantages_compare_the_responses_to_one_prompt():
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
    """Autograd's gradient equals that of Schulman et al. 2017, eq. 7, written out case by case."""
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


@pytest.mark.parametrize(("high", "dual"), [(0.05, None), (0.5, 1.1), (0.2, 1.3)])
@pytest.mark.parametrize("mean", ["tokens", "sequences", "sequence_sums", "constant"])
def test_other_bounds_and_other_means_are_in_the_columns(high, dual, mean):
    trainer = make(policy_clip_high=high, policy_dual_clip=dual, loss_mean=mean, microbatch=2)
    _, trace = all_rows(trainer)
    sides = []
    for row in trace.rows:
        for token in row.tokens:
            for update in token.updates:
                a, ratio, n = token.advantage, update.ratio, trace.minibatches[update.minibatch].num_tokens
                divisor = {"tokens": n, "sequences": 4 * len(row.tokens), "sequence_sums": 4, "constant": 4 * 6}[mean]
                is_above = (a > 0 and ratio > 1 + high) or (dual is not None and a < 0 and ratio > dual)
                is_below = a < 0 and ratio < 0.8
                assert update.clip_side == ("above" if is_above else "below" if is_below else "")
                assert update.is_clipped == (is_above or is_below)
                bound = min(ratio, 1 + high) if a > 0 else min(max(ratio, 0.8), dual or math.inf)
                assert update.policy_loss == pytest.approx(-a * bound, rel=1e-4, abs=1e-6)
                assert update.unclipped_gradient == pytest.approx(-a * ratio / divisor, rel=1e-4, abs=1e-8)
                expected = 0 if update.is_clipped else -a * ratio / divisor
                assert update.logprob_gradient == pytest.approx(expected, rel=1e-4, abs=1e-8)
                sides.append((update.clip_side, a > 0))
    assert {("above", True), ("below", False)} <= set(sides)
    assert (("above", False) in sides) == (dual is not None)


@pytest.mark.parametrize("name", ["gspo", "cispo", "reinforce", "own"])
def test_another_loss_leaves_what_is_true_of_any_loss(name):
    def own(new, part, *, num_tokens, num_sequences):
        return -2 * (part.advantages * new.logprobs * part.generation.action_mask).sum() / num_tokens, {}

    _, trace = all_rows(make(own_loss=own) if name == "own" else make(policy_loss=name))
    assert not trace.has_clip
    for token in (token for row in trace.rows for token in row.tokens):
        for update in token.updates:
            columns = (update.surrogate, update.clipped_surrogate, update.policy_loss, update.unclipped_gradient)
            assert columns == (None, None, None, None)
            assert (update.is_clipped, update.clip_side) == (False, "")
            assert update.ratio == pytest.approx(math.exp(update.logprob - token.old_logprob), rel=1e-5)
            n, a = trace.minibatches[update.minibatch].num_tokens, token.advantage
            slope = {"own": -2 * a, "reinforce": -a, "cispo": -a * min(max(update.ratio, 0.8), 1.2)}.get(name)
            if slope is not None:
                assert update.logprob_gradient == pytest.approx(slope / n, rel=1e-4, abs=1e-8)


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
                assert 1 not in [a.id for a in token.alternatives]  # EOS cannot be drawn there
    whole = make(**changes)
    _, trace = all_rows(whole, top_k=1000)
    for token in (token for row in trace.rows for token in row.tokens):
        assert sum(a.before for a in token.alternatives) == pytest.approx(1, abs=1e-4)
