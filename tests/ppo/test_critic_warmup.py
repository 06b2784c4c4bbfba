"""In the first steps the critic learns alone: no bit of the policy moves, nor of its moments."""

from dataclasses import replace

import pytest
import torch

import ppo
from ppo import Config, Trainer
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7, 8], [9, 10, 11]]
RETAIN = [[2, 4, 6, 8, 10, 3], [5, 7, 9]]
SMALL = Config(
    prompts_per_step=4, minibatch=2, response_length=5, epochs=2, learning_rate=1e-2, weight_decay=0.1,
    critic_warmup_steps=2, detach_value_head=True, retain_coef=0.5, retain_tokens=4, entropy_coef=0.1,
)  # fmt: skip


def scores(samples):
    return [sum(s.ids) / 10 for s in samples]


def make(config=SMALL, **arguments):
    torch.manual_seed(0)
    return Trainer(tiny_gpt2(), PROMPTS, scores, config, retain=RETAIN, **arguments)


def weights(trainer, *, of_value):
    actor = trainer.policy.actor
    own = actor.value_parameter_names()
    return {name: p.detach().clone() for name, p in actor.named_parameters() if (name in own) == of_value}


def assert_same(left, right):
    assert all(torch.equal(left[name], right[name]) for name in left.keys() | right.keys())


@pytest.mark.parametrize("changes", [{}, {"value_head": "critic", "detach_value_head": False}, {"microbatch": 1},
                                     {"moment_dtype": "bfloat16"}])  # fmt: skip
def test_the_policy_keeps_its_bits_until_the_critic_is_warm(changes):
    trainer = make(SMALL.replace(**changes))
    policy, critic = (weights(trainer, of_value=x) for x in (False, True))
    kl_coef = trainer.kl.coef
    for _ in range(2):
        metrics = trainer.update(trainer.rollout())
        assert_same(weights(trainer, of_value=False), policy)
        assert not any(name.startswith("policy.") for name in trainer.learner.optimizer.state_tensors())
        assert {"policy/loss", "policy/entropy", "value/loss", "retain/loss", "update/grad_norm"} <= metrics.keys()
        assert metrics["policy/ratio"] == pytest.approx(1, abs=1e-5)
        assert trainer.kl.coef == kl_coef
    assert any(not torch.equal(x, critic[name]) for name, x in weights(trainer, of_value=True).items())
    trainer.update(trainer.rollout())
    assert any(not torch.equal(x, policy[name]) for name, x in weights(trainer, of_value=False).items())
    assert trainer.kl.coef != kl_coef


def test_a_resumed_run_waits_as_long(tmp_path):
    trainer = make()
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "ckpt")
    again = Trainer.resume(tmp_path / "ckpt", PROMPTS, scores, retain=RETAIN)
    before = weights(again, of_value=False)
    for run in (trainer, again):
        run.train(1, progress=False)
    assert_same(weights(again, of_value=False), before)
    for run in (trainer, again):
        run.train(1, progress=False)
    for of_value in (False, True):
        assert_same(weights(trainer, of_value=of_value), weights(again, of_value=of_value))


def test_every_minibatch_of_a_waiting_policy_has_ratio_one():
    trainer = make()
    seen = []
    trainer.learner._checks.first_minibatch = lambda *a, step: seen.append(step)
    for _ in range(3):
        trainer.update(trainer.rollout())
    assert [seen.count(step) for step in range(3)] == [4, 4, 1]


def test_a_critic_that_shares_weights_with_the_policy_leaves_them_alone():
    class Sharing(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.table = model.transformer.wte
            self.head = torch.nn.Linear(self.table.weight.shape[1], 1)

        def forward(self, input_ids, attention_mask):
            return self.head(self.table(input_ids)).squeeze(-1)

    torch.manual_seed(0)
    model = tiny_gpt2()
    trainer = Trainer(model, PROMPTS, scores, SMALL, retain=RETAIN, value=Sharing(model))
    before = weights(trainer, of_value=False)
    head = trainer.policy.actor.critic.head.weight.detach().clone()
    trainer.train(1, progress=False)
    assert_same(weights(trainer, of_value=False), before)
    assert not torch.equal(trainer.policy.actor.critic.head.weight, head)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_replay_waits_in_the_steps_in_which_the_run_waited(tmp_path, steps):
    trainer = make(out=tmp_path)
    trainer.train(steps, progress=False)
    rollout = trainer.rollout()
    with pytest.raises(ppo.CheckError, match="ratio other than 1"):
        trainer.update(replace(rollout, old_logprobs=rollout.old_logprobs * 1.4))
    assert ppo.replay(next((tmp_path / "dumps").iterdir())).learner.is_policy_waiting == (steps < 2)
