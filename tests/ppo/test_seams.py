"""Functions of a researcher's own: in the library's places, under its checks, part of its checkpoints."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import ppo
from ppo import Config, Trainer
from ppo.advantages import advantage_of, gae
from ppo.checkpoint import state_sha256
from ppo.policy_losses import policy_loss_of
from ppo.sampler import sample_policy
from ppo.types import Step
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=2, learning_rate=1e-2)


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def make(config=SMALL, **arguments):
    torch.manual_seed(0)
    return Trainer(tiny_gpt2(), PROMPTS, id_mean, config, **arguments)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.actor.parameters()])


def trained(steps=2, **arguments):
    trainer = make(**arguments)
    trainer.train(steps, progress=False)
    return weights(trainer)


class Critic(nn.Module):
    """A critic of another size than the policy: a table of tokens and a running mean."""

    def __init__(self, width=3):
        super().__init__()
        self.table = nn.Embedding(64, width)
        self.out = nn.Linear(width, 1)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, input_ids, attention_mask):
        hidden = self.table(input_ids) * attention_mask.unsqueeze(-1)
        counts = attention_mask.cumsum(dim=1).clamp(min=1).unsqueeze(-1)
        return self.out(hidden.cumsum(dim=1) / counts).squeeze(-1)


# ---------------------------------------------------------------------- in the library's place


def my_gae(rewards, values, mask, samples):
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    return ppo.whiten(advantages, mask), returns


def my_loss(new, part, *, num_tokens, num_sequences):
    return policy_loss_of(SMALL)(new, part, num_tokens=num_tokens, num_sequences=num_sequences)


def my_sampler(policy, prompts, *, seed, request_ids):
    return sample_policy(policy, prompts, seed=seed, request_ids=request_ids)


def test_the_library_s_own_functions_handed_in_give_the_same_bits():
    plain = trained()
    assert torch.equal(plain, trained(advantage=my_gae))
    assert torch.equal(plain, trained(policy_loss=my_loss))
    assert torch.equal(plain, trained(sampler=my_sampler))
    assert torch.equal(plain, trained(advantage=advantage_of(SMALL), policy_loss=policy_loss_of(SMALL)))


def reinforce(new, part, *, num_tokens, num_sequences):
    """- A log pi, a mean over actions."""
    mask = part.generation.action_mask
    loss = -(part.advantages * new.logprobs * mask).sum() / num_tokens
    return loss, {"logprob": (new.logprobs.detach() * mask).sum() / num_tokens}


@pytest.mark.parametrize("split", [{"microbatch": 1}, {"microbatch": 2}, {"microbatch_tokens": 11}])
def test_an_own_loss_is_the_same_however_the_minibatch_is_cut(split):
    def gradients(**more):
        trainer = make(SMALL.replace(minibatch=8, value_head="none", **more), advantage=centred, policy_loss=reinforce)
        trainer.learner.gradient(trainer.rollout(), None)
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    whole, parts = gradients(), gradients(**split)
    assert whole.norm() > 0
    assert torch.allclose(whole, parts, atol=1e-6 * float(whole.abs().max()) + 1e-8)


def centred(rewards, values, mask, samples):
    """Each token gets its response's reward above the step's mean."""
    totals = rewards.sum(dim=1)
    return (totals - totals.mean()).unsqueeze(1) * mask, torch.zeros_like(rewards)


@pytest.mark.parametrize("more", [{}, {"top_k": 30}])  # tiles of the vocabulary, and whole rows of it
def test_the_entropy_in_an_own_loss_carries_its_gradient(more):
    def seeking(new, part, *, num_tokens, num_sequences):
        loss, statistics = reinforce(new, part, num_tokens=num_tokens, num_sequences=num_sequences)
        return loss - 0.3 * new.entropy.sum() / num_tokens, statistics

    def gradients(loss, **config):
        trainer = make(SMALL.replace(minibatch=8, **more, **config), policy_loss=loss)
        trainer.learner.gradient(trainer.rollout(), None)
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    without, own, expected = gradients(reinforce), gradients(seeking), gradients(reinforce, entropy_coef=0.3)
    assert (expected - without).norm() > 1e-3 * expected.norm()
    assert torch.allclose(own, expected, atol=1e-6 * float(expected.abs().max()))


def test_an_own_loss_and_estimator_train_without_a_critic_and_keep_the_brakes():
    trainer = make(SMALL.replace(value_head="none"), advantage=centred, policy_loss=reinforce)
    rollout = trainer.rollout()
    totals = rollout.rewards.sum(dim=1)
    assert torch.allclose(rollout.advantages[:, 0], totals - totals.mean())
    assert not rollout.old_values.any()
    metrics = trainer.update(rollout)
    assert {"policy/logprob", "policy/ratio", "policy/approx_kl", "policy/log_ratio"} <= metrics.keys()
    assert "value/loss" not in metrics
    stopped = make(SMALL.replace(stop_kl_per_token=1e-9), policy_loss=reinforce)
    assert stopped.update(stopped.rollout())["update/stopped_early"] == 1
    wild = replace(stopped.rollout(), policy_version=None)
    wild = replace(wild, old_logprobs=(wild.old_logprobs - 9) * wild.generation.mask)
    assert stopped.update(wild)["update/skipped_minibatches"] > 0
    fresh = stopped.rollout()
    with pytest.raises(ppo.CheckError, match="ratio other than 1"):
        stopped.update(replace(fresh, old_logprobs=fresh.old_logprobs * 1.4))


def test_an_own_critic_learns_beside_the_policy_and_resumes_to_the_same_bits(tmp_path):
    trainer = make(value=Critic())
    before = weights(trainer)
    trainer.train(1, progress=False)
    found = dict(trainer.policy.actor.named_parameters())
    assert {"critic.table.weight", "critic.out.weight"} <= trainer.policy.actor.value_parameter_names()
    assert not torch.equal(before, weights(trainer))
    assert found["critic.out.weight"].abs().max() > 0
    assert (trainer.rollout().old_values != 0).any()
    trainer = make(value=Critic())
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "ckpt")
    trainer.train(1, progress=False)
    again = Trainer.resume(tmp_path / "ckpt", PROMPTS, id_mean, value=Critic())
    again.train(1, progress=False)
    assert torch.equal(weights(trainer), weights(again))


def test_an_own_critic_s_value_is_the_one_before_the_token():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, input_ids, attention_mask):
            return self.scale * attention_mask.cumsum(dim=1)

    rollout = make(value=Positions()).rollout()
    for row, sample in enumerate(rollout.samples):
        expected = [len(sample.prompt_ids) + t for t in range(len(sample.ids))]  # tokens read before token t
        assert rollout.old_values[row, : len(sample.ids)].tolist() == expected


def test_every_step_is_shown_once_its_lines_are_written(tmp_path):
    seen = []

    def look(step: Step):
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        seen.append((step.number, len(lines), json.loads(lines[-1])["score/mean"] == step.metrics["score/mean"]))
        assert len(step.rollout) == 8

    make(out=tmp_path).train(3, on_step=look, progress=False)
    assert seen == [(0, 1, True), (1, 2, True), (2, 3, True)]


# ---------------------------------------------------------------------- what bad answers get


def no_tuple(rewards, values, mask, samples):
    return rewards


def short(rewards, values, mask, samples):
    return rewards[:, :1], rewards


def not_finite(rewards, values, mask, samples):
    return rewards * torch.nan, rewards


def outside(rewards, values, mask, samples):
    return torch.ones_like(rewards), rewards


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (no_tuple, r"no_tuple returned a tensor \[8, 6\]: wanted \(advantages, returns\)"),
        (short, r"short returned advantages \[8, 1\]: wanted \[B, T\] = \[8, 6\]"),
        (not_finite, "not_finite returned advantages that are NaN or infinite"),
        (outside, "outside returned advantages outside the action mask"),
    ],
)
def test_a_wrong_estimator_is_named_before_anything_moves(function, problem):
    trainer = make(advantage=function)
    before = weights(trainer)
    with pytest.raises(ValueError, match=f"^advantage=tests.ppo.test_seams.{problem}"):
        trainer.train(1, progress=False)
    assert torch.equal(before, weights(trainer))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda new: new.logprobs.sum(), "returned a tensor .*: wanted .loss, statistics."),
        (lambda new: (new.logprobs, {}), r"returned a loss that is a tensor \[4, \d\]: wanted a tensor of one number"),
        (lambda new: (new.logprobs.detach().sum(), {}), "returned a loss without a gradient"),
        (
            lambda new: (new.logprobs.sum(), {"ratio": 1.0}),
            "returned the statistic 'ratio', which the library measures",
        ),
        (lambda new: (new.logprobs.sum(), {"x": "y"}), "returned the statistic 'x' that is a str: wanted a number"),
        (lambda new: (new.values.sum(), {}), "returned a loss whose gradient does not reach new.logprobs"),
        (
            lambda new: (torch.zeros((), requires_grad=True), {}),
            "returned a loss whose gradient does not reach new.logp",
        ),
        (lambda new: (new.logprobs.sum() * torch.nan, {}), "returned a loss that is nan: wanted finite numbers"),
        (lambda new: (new.logprobs.sum(), {"x": torch.tensor(torch.nan)}), "returned the statistic 'x' that is nan"),
        (lambda new: (new.logprobs.sum(), {"x": float("inf")}), "returned the statistic 'x' that is inf"),
        (lambda new: (new.logprobs.sum(), None), r"returned \(a tensor \[\], None\): wanted \(loss, statistics\)"),
        (lambda new: (new.logprobs.sum(), new.logprobs.sum()), r"returned \(a tensor \[\], a tensor \[\]\): wanted"),
        (lambda new: ([1.0], {}), r"returned a loss that is a list: wanted a tensor of one number"),
    ],
)
def test_a_wrong_loss_is_named_before_anything_moves(answer, problem):
    def mine(new, part, *, num_tokens, num_sequences):
        return answer(new)

    trainer = make(policy_loss=mine)
    before = weights(trainer)
    with pytest.raises(ValueError, match=f"^policy_loss=.*mine {problem}"):
        trainer.train(1, progress=False)
    assert torch.equal(before, weights(trainer))


def test_a_critic_of_the_wrong_shape_is_named():
    class Wide(Critic):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids, attention_mask).unsqueeze(-1)

    with pytest.raises(ValueError, match=r"^value=.*Wide returned a tensor \[\d, \d+, 1\]: wanted values \[B, S\]"):
        make(value=Wide()).rollout()
    with pytest.raises(ValueError, match="would never be asked"):
        make(SMALL.replace(advantage="grpo", samples_per_prompt=2, prompts_per_step=4), value=Critic())
    with pytest.raises(ValueError, match=r"wanted a torch\.nn\.Module"):
        make(value=lambda ids, mask: ids)
    with pytest.raises(ValueError, match="value_head='none' goes with an estimator of your own"):
        make(SMALL.replace(value_head="none"))
    with pytest.raises(
        ValueError,
        match=r"^advantage=.* would never read Config\(gae_length_alpha=0.05\): leave gae_length_alpha at its default",
    ):
        make(SMALL.replace(gae_length_alpha=0.05), advantage=lambda r, v, m, s: (r, r))


# ---------------------------------------------------------------------- checkpoints


def test_a_resume_without_them_is_refused_and_names_them(tmp_path):
    trainer = make(advantage=my_gae, policy_loss=my_loss)
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "state.json").read_text())["own"] == {
        "advantage": "tests.ppo.test_seams.my_gae", "policy_loss": "tests.ppo.test_seams.my_loss",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"was saved with advantage=tests.ppo.test_seams.my_gae: pass it to resume"):
        Trainer.resume(tmp_path / "own", PROMPTS, id_mean, policy_loss=my_loss)
    with pytest.raises(ValueError, match=r"was saved without sampler=…, resume got .*my_sampler: leave it out"):
        Trainer.resume(tmp_path / "own", PROMPTS, id_mean, advantage=my_gae, policy_loss=my_loss, sampler=my_sampler)
    with pytest.warns(RuntimeWarning, match="was saved with policy_loss=.*my_loss, resume got .*reinforce"):
        Trainer.resume(tmp_path / "own", PROMPTS, id_mean, advantage=my_gae, policy_loss=reinforce)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Trainer.resume(tmp_path / "own", PROMPTS, id_mean, advantage=my_gae, policy_loss=my_loss)
    again.train(1, progress=False)
    trainer.train(1, progress=False)
    assert torch.equal(weights(trainer), weights(again))


def test_a_checkpoint_from_before_they_existed_takes_any(tmp_path):
    """It does not say what was used, so nothing can be missing."""
    trainer = make(sampler=my_sampler)
    trainer.save(tmp_path / "old")
    file = tmp_path / "old" / "state.json"
    state = json.loads(file.read_text())
    assert state.pop("own") == {"sampler": "tests.ppo.test_seams.my_sampler"}
    state.pop("state_sha256")
    file.write_text(json.dumps(state | {"state_sha256": state_sha256(state)}))
    again = Trainer.resume(tmp_path / "old", PROMPTS, id_mean, sampler=my_sampler)
    again.train(1, progress=False)
    trainer.train(1, progress=False)
    assert torch.equal(weights(trainer), weights(again))


def test_a_dump_is_replayed_with_the_parts_that_were_used(tmp_path):
    trainer = make(SMALL.replace(minibatch=8), policy_loss=reinforce, value=Critic(), out=tmp_path)
    rollout = trainer.rollout()
    with pytest.raises(ppo.CheckError, match="ratio other than 1"):
        trainer.update(replace(rollout, old_logprobs=rollout.old_logprobs * 1.4))
    folder = next((tmp_path / "dumps").iterdir())
    with pytest.raises(ValueError, match=r"was saved with policy_loss=.*reinforce: pass it to replay"):
        ppo.replay(folder, value=Critic())
    with pytest.raises(ValueError, match=r"was saved with value=tests.ppo.test_seams.Critic: pass it to replay"):
        ppo.replay(folder, policy_loss=reinforce)
    found = ppo.replay(folder, policy_loss=reinforce, value=Critic())
    assert "policy/logprob" in found.statistics
    assert "policy/clip_fraction" not in found.statistics
