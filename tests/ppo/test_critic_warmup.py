"""In the first steps the critic learns alone: no bit of the policy moves, nor of its moments."""

from dataclasses import replace

import pytest
import torch

import ppo
from ppo import Config, Trainer
from ppo.checkpoint.folder import load_tensors
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


# ---------------------------------------------------------------------- a critic of another run


@pytest.mark.parametrize("kind", ["linear", "mlp", "critic"])
@pytest.mark.parametrize("source", ["save_value", "save"])
def test_a_critic_starts_from_given_weights(tmp_path, kind, source):
    """It was warmed up in one run; the next one begins with it, and with a policy that never moved."""
    config = SMALL.replace(value_head=kind, critic_warmup_steps=2)
    first = make(config=config)
    first.train(2, progress=False)
    getattr(first, source)(tmp_path / "critic")
    second = make(config=config.replace(critic_warmup_steps=0), value=tmp_path / "critic")
    assert_same(weights(second, of_value=True), weights(first, of_value=True))
    assert any(x.any() for x in weights(second, of_value=True).values())
    assert_same(weights(second, of_value=False), weights(make(config=config), of_value=False))
    assert second.state.own == {}
    second.save(tmp_path / "ckpt")
    again = Trainer.resume(tmp_path / "ckpt", PROMPTS, scores, retain=RETAIN)
    assert_same(weights(again, of_value=True), weights(second, of_value=True))


def test_the_policy_s_version_counts_its_own_updates(tmp_path):
    trainer = make(SMALL)
    versions = []
    for _ in range(4):
        versions.append(trainer.policy_version)
        trainer.train(1, progress=False)
    assert versions == [0, 0, 0, 4]  # two steps of waiting, then 2 epochs of 2 minibatches
    trainer.save(tmp_path / "ckpt")
    again = Trainer.resume(tmp_path / "ckpt", PROMPTS, scores, retain=RETAIN)
    assert again.policy_version == trainer.policy_version == 8
    with pytest.raises(ValueError, match="the checkpoint holds the critic's weights, leave value out"):
        Trainer.resume(tmp_path / "ckpt", PROMPTS, scores, retain=RETAIN, value=tmp_path / "ckpt")


def test_a_saved_critic_is_nothing_but_the_critic(tmp_path):
    trainer = make(config=SMALL.replace(value_head="mlp"))
    trainer.save_value(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["value.safetensors"]
    assert set(load_tensors(tmp_path / "value.safetensors")) == trainer.policy.actor.value_parameter_names()


def test_weights_that_do_not_fit_are_refused(tmp_path):
    make(config=SMALL.replace(value_head="mlp")).save_value(tmp_path)
    with pytest.raises(ValueError, match=r"weights that do not fit .*, value_head.layers.2.bias"):
        make(config=SMALL.replace(value_head="linear"), value=tmp_path)
    with pytest.raises(ValueError, match="does not exist: name a checkpoint, or a folder that save_value wrote"):
        make(value=tmp_path / "nowhere")
    groups = SMALL.replace(
        advantage="grpo", samples_per_prompt=2, prompts_per_step=SMALL.prompts_per_step // 2, critic_warmup_steps=0
    )
    with pytest.raises(ValueError, match=r"value=critic would never be asked: .*'grpo'\) has no critic"):
        make(config=groups, value="critic")
    with pytest.raises(ValueError, match="this run has no critic to save"):
        make(config=groups).save_value(tmp_path)
