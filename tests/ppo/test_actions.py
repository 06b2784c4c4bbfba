"""Two masks: what is real, and what the policy chose. An environment's tokens are read and never trained on."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ppo
from ppo import Config, Trainer
from ppo.advantages import gae, place_scores, raw_gae, td_errors
from ppo.checks import rollout_problems
from ppo.sampler import collate
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7, 8], [9, 10, 11]]
SMALL = Config(prompts_per_step=4, minibatch=2, response_length=8, epochs=2, learning_rate=1e-2)
RESPONSES = [[5, 14, 15, 6, 7], [8, 9], [3, 16, 17, 18, 4], [6, 15, 7, 14, 2, 1]]
ACTIONS = [[1, 0, 0, 1, 1], [1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1]]  # 14 and above were written by a tool


def with_a_tool(policy, prompts, *, seed, request_ids):
    """The same conversations in every step: the policy's tokens, and what a tool wrote in between."""
    chosen = [RESPONSES[PROMPTS.index(p.ids)] for p in prompts]
    actions = [ACTIONS[PROMPTS.index(p.ids)] for p in prompts]
    drawn = collate([p.ids for p in prompts], chosen, eos_ids=(1,))
    width = drawn.tokens.shape[1]
    action_mask = torch.tensor([[*row, *[0] * (width - len(row))] for row in actions], dtype=torch.bool)
    drawn = replace(drawn, action_mask=action_mask, info=[{"calls": row.count(0)} for row in actions])
    found = policy.measure(drawn)
    return replace(drawn, logprobs=found.logprobs, entropy=found.entropy, values=found.values)


def chosen_tokens(samples):
    return [sum(i for i in s.ids if i < 14) / 10 for s in samples]


def make(config=SMALL, reward=chosen_tokens, model=None, **arguments):
    torch.manual_seed(0)
    return Trainer(model or tiny_gpt2(), PROMPTS, reward, config, sampler=with_a_tool, **arguments)


# ---------------------------------------------------------------------- the mathematics


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=9).filter(any), min_size=1, max_size=4), st.integers(0, 99)
)
def test_holes_are_stepped_over(actions, seed):
    """As if what the environment wrote had been cut out."""
    width, draw = max(map(len, actions)), torch.Generator().manual_seed(seed)
    mask = torch.tensor([[*row, *[False] * (width - len(row))] for row in actions])
    rewards, values = (torch.randn(mask.shape, generator=draw, dtype=torch.float64) * mask for _ in range(2))
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    errors = td_errors(rewards, values, mask, gamma=0.9)
    config = Config(gamma=0.9, gae_length_alpha=0.6, value_gae_lambda=0.3)
    adaptive = raw_gae(rewards, values, mask, config)
    for row, real in enumerate(mask):
        cut = [x[row : row + 1, real] for x in (rewards, values, mask)]
        expected, expected_returns = gae(*cut, gamma=0.9, lam=0.8)
        for found, wanted in zip(adaptive, raw_gae(*cut, config), strict=True):
            assert torch.equal(found[row, real], wanted[0])
            assert not found[~mask].any()
        assert torch.equal(advantages[row, real], expected[0])
        assert torch.equal(returns[row, real], expected_returns[0])
    assert not advantages[~mask].any()
    assert not returns[~mask].any()
    assert not errors[~mask].any()


def test_the_case_that_was_wrong():
    """Mask 1 1 0 1 1, reward 1 on the last: every action before it earns it, with gamma = lambda = 1."""
    mask = torch.tensor([[True, True, False, True, True]])
    rewards = place_scores(torch.tensor([1.0]), mask)
    assert rewards.tolist() == [[0, 0, 0, 0, 1]]
    advantages, _ = gae(rewards, torch.zeros(1, 5), mask, gamma=1.0, lam=1.0)
    assert advantages.tolist() == [[1, 1, 0, 1, 1]]
    assert place_scores(torch.tensor([7.0]), torch.tensor([[True, False, True, False]])).tolist() == [[0, 0, 7, 0]]


# ---------------------------------------------------------------------- a run


def test_every_number_of_a_rollout_is_about_actions():
    trainer = make(SMALL.replace(kl_coef=0.3, whiten_rewards=True))
    rollout = trainer.rollout()
    generation, actions = rollout.generation, rollout.generation.action_mask
    assert int(actions.sum()) == sum(map(sum, ACTIONS))
    assert not any(bool(is_bad.any()) for is_bad in rollout_problems(rollout).values())
    for name in ("old_logprobs", "old_values", "ref_logprobs", "kl", "rewards", "advantages", "returns"):
        assert not getattr(rollout, name)[~actions].any()
    assert (rollout.old_logprobs[actions] < 0).all()
    assert not generation.entropy[~actions].any()
    assert sorted(s.info["calls"] for s in rollout.samples) == [0, 2, 2, 3]
    assert [s.ids for s in rollout.samples] == [RESPONSES[PROMPTS.index(s.prompt_ids)] for s in rollout.samples]
    assert rollout.metrics["response/entropy"] == pytest.approx(float(generation.entropy[actions].mean()), rel=1e-5)


def test_log_probs_and_gradient_are_those_of_plain_loops():
    """Each token is predicted from all that stands before it, a tool's words too; the loss is about actions alone."""
    torch.manual_seed(0)
    model = tiny_gpt2().double()
    config = SMALL.replace(
        kl_coef=0.0, minibatch=4, epochs=1, policy_clip=9.0, value_head="none", old_logprobs="recompute"
    )
    trainer = make(config, model=model, advantage=lambda r, v, m, s: (r.sum(1, keepdim=True) * m, torch.zeros_like(r)))
    rollout = trainer.rollout()
    trainer.learner.gradient(rollout, None)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    trainer.learner.optimizer.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for sample in rollout.samples:
        actions, score = ACTIONS[PROMPTS.index(sample.prompt_ids)], chosen_tokens([sample])[0]
        logits = model(input_ids=torch.tensor([sample.prompt_ids + sample.ids])).logits[0]
        for t, (token, is_action) in enumerate(zip(sample.ids, actions, strict=True)):
            logprob = torch.log_softmax(logits[len(sample.prompt_ids) + t - 1], dim=-1)[token]
            total = total - is_action * score * (logprob - logprob.detach()).exp()
    (total / sum(map(sum, ACTIONS))).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_training_goes_on_and_a_resumed_run_gets_the_same_bits(tmp_path):
    def weights(trainer):
        return torch.cat([p.detach().flatten() for p in trainer.policy.actor.parameters()])

    trainer = make(out=tmp_path)
    metrics = trainer.update(trainer.rollout())
    assert metrics["rollout/logprob_gap"] < 1e-5
    trainer.save(tmp_path / "ckpt")
    trainer.train(1, progress=False)
    again = Trainer.resume(tmp_path / "ckpt", PROMPTS, chosen_tokens, sampler=with_a_tool)
    again.train(1, progress=False)
    assert torch.equal(weights(trainer), weights(again))


def test_microbatches_do_not_change_the_gradient():
    def gradient(**changes):
        trainer = make(SMALL.replace(minibatch=4, entropy_coef=0.1, **changes))
        trainer.learner.gradient(trainer.rollout(), None)
        return torch.cat([p.grad.flatten() for p in trainer.policy.actor.trained_parameters().values()])

    assert torch.allclose(gradient(), gradient(microbatch=1), atol=1e-6)


def test_token_rewards_belong_to_actions():
    trainer = make(reward=lambda samples: [[1.0] * len(s.ids) for s in samples])
    with pytest.raises(ValueError, match=r"^reward=.* gave a reward for token \d of sample \d, which an env"):
        trainer.rollout()
    trainer = make(reward=lambda samples: [[float(i < 14) for i in s.ids] for s in samples])
    assert trainer.rollout().scores.sum() == sum(map(sum, ACTIONS))


def test_a_dump_keeps_the_actions(tmp_path):
    trainer = make(SMALL.replace(minibatch=4), out=tmp_path)
    rollout = trainer.rollout()
    with pytest.raises(ppo.CheckError, match="ratio other than 1"):
        trainer.update(replace(rollout, old_logprobs=rollout.old_logprobs * 1.4))
    found = ppo.replay(next((tmp_path / "dumps").iterdir())).rollout.generation
    assert int(found.action_mask.sum()) == sum(map(sum, ACTIONS))
    assert int(found.mask.sum()) == sum(map(len, RESPONSES))


def test_a_mask_with_a_hole_is_no_rollout_for_an_update():
    trainer = make()
    rollout = trainer.rollout()
    mask = rollout.generation.mask.clone()
    mask[:, 1] = False
    broken = replace(rollout, generation=replace(rollout.generation, mask=mask))
    found = {name for name, is_bad in rollout_problems(broken).items() if bool(is_bad.any())}
    assert "the response mask has a hole" in found
