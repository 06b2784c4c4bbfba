"""Rows that an update leaves out, and rows that it imitates. The numbers themselves are compared in test_oracle.py."""

from dataclasses import replace

import pytest
import torch

import ppo
from ppo import Config, Trainer
from ppo.buffer import rows
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3], [4, 5], [6, 7], [8, 9]]
CONFIG = Config(prompts_per_step=4, minibatch=4, response_length=5, epochs=1, learning_rate=1e-2, entropy_coef=0.1)


def make(config=CONFIG, reward=lambda samples: [float(s.ids[0]) for s in samples], **model):
    torch.manual_seed(0)
    return Trainer(tiny_gpt2(**model), PROMPTS, reward, config)


def with_ends(rollout, is_ended):
    return replace(rollout, generation=replace(rollout.generation, is_ended=torch.tensor(is_ended)))


def gradient(trainer, rollout):
    statistics, _ = trainer.learner.gradient(trainer.learner._trained_on(rollout), None)
    found = [p.grad.clone() for p in trainer.policy.actor.trained_parameters().values()]
    trainer.learner.optimizer.zero_grad()
    return found, statistics


@pytest.mark.parametrize("mean", ["tokens", "sequences", "sequence_sums", "constant"])
def test_a_cut_response_moves_nothing(mean):
    """Whatever its numbers are, the gradient is that of the other rows alone."""
    trainer = make(CONFIG.replace(mask_overlong=True, loss_mean=mean))
    rollout = with_ends(trainer.rollout(), [True, False, True, False])
    found, statistics = gradient(trainer, rollout)
    wild = rollout.advantages.clone()
    wild[1], wild[3] = 50.0, -70.0
    again, _ = gradient(trainer, replace(rollout, advantages=wild * rollout.generation.mask))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    plain = make(CONFIG.replace(loss_mean=mean))
    plain.rollout()
    alone, expected = gradient(plain, rows(rollout, torch.tensor([0, 2])))
    for a, b in zip(found, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    assert statistics == pytest.approx(expected, abs=1e-6)


def test_a_minibatch_of_cut_responses_is_left_out():
    """Adam's momentum would move the weights by itself: they keep their bits."""
    trainer = make(CONFIG.replace(mask_overlong=True, minibatch=2, epochs=2), eos=None)
    trainer.update(with_ends(trainer.rollout(), [True] * 4))
    before = [p.clone() for p in trainer.model.parameters()]
    metrics = trainer.update(with_ends(trainer.rollout(), [False] * 4))
    assert metrics["update/empty_minibatches"] == 4
    assert metrics["update/minibatches"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("changes", [{"top_k": 5}, {"top_p": 0.8}, {"top_k": 5, "kept_sets": "replay"}])
def test_a_microbatch_of_cut_responses_has_a_gradient_of_0_under_filters(changes):
    config = CONFIG.replace(mask_overlong=True, microbatch=1, entropy_coef=0.0, **changes)
    trainer = make(config.replace(advantage="grpo", prompts_per_step=2, samples_per_prompt=2))
    metrics = trainer.update(with_ends(trainer.rollout(), [True, False, True, False]))
    assert metrics["update/grad_norm"] > 0


def test_an_own_loss_sees_nothing_of_a_cut_response():
    seen = []

    def loss(new, part, *, num_tokens, num_sequences):
        off = ~part.generation.action_mask
        seen.extend(float(x[off].abs().sum()) for x in (part.advantages, part.old_logprobs, part.returns, part.kl))
        return -(new.logprobs * part.advantages).sum() / num_tokens, {}

    torch.manual_seed(0)
    config = CONFIG.replace(mask_overlong=True, microbatch=2)
    trainer = Trainer(tiny_gpt2(), PROMPTS, lambda s: [float(x.ids[0]) for x in s], config, policy_loss=loss)
    trainer.update(with_ends(trainer.rollout(), [True, False, True, False]))
    assert seen
    assert not any(seen)


def test_a_dump_holds_the_rows_as_they_were(tmp_path):
    torch.manual_seed(0)
    config = CONFIG.replace(mask_overlong=True)
    trainer = Trainer(tiny_gpt2(), PROMPTS, lambda s: [float(x.ids[0]) for x in s], config, out=tmp_path)
    rollout = with_ends(trainer.rollout(), [True, False, True, False])
    with pytest.raises(ppo.CheckError, match="ratio other than 1"):
        trainer.update(replace(rollout, old_logprobs=rollout.old_logprobs * 1.5))
    again = ppo.replay(next((tmp_path / "dumps").iterdir()))
    assert all("nats per token apart" in problem for problem in again.problems)
    assert torch.equal(again.rollout.generation.action_mask.sum(), rollout.generation.action_mask.sum())


def test_text_to_keep_is_trained_on_all_the_same():
    config = CONFIG.replace(mask_overlong=True, retain_coef=1.0, retain_tokens=4, retain_sequences=2)
    trainer = Trainer(
        tiny_gpt2(eos=None), PROMPTS, lambda samples: [1.0] * len(samples), config, retain=[[2, 3, 4, 5, 6, 7]]
    )
    before = [p.clone() for p in trainer.model.parameters()]
    metrics = trainer.update(trainer.rollout())
    assert "update/empty_minibatches" not in metrics
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_the_rollout_itself_keeps_all_that_was_measured():
    """KL control, logs and traces see the whole step."""
    trainer, plain = make(CONFIG.replace(mask_overlong=True)), make()
    found, expected = trainer.rollout(), plain.rollout()
    assert torch.equal(found.advantages, expected.advantages)
    assert torch.equal(found.generation.action_mask, expected.generation.action_mask)


def test_only_good_responses_are_imitated():
    """Without advantages the gradient is that of -log pi over the good responses, and 0 where there are none."""
    config = CONFIG.replace(positive_coef=1.0, positive_score=10.5, kl_coef=0.0, value_coef=0.0, entropy_coef=0.0)
    trainer = make(config)
    rollout = trainer.rollout()
    scores = torch.tensor([11.0, 10.5, 12.0, -1.0])
    rollout = replace(rollout, scores=scores, advantages=torch.zeros_like(rollout.advantages))
    found, statistics = gradient(trainer, rollout)
    mask = rollout.generation.mask & (scores > 10.5).unsqueeze(1)
    loss = -(trainer.policy.evaluate(rollout.generation).logprobs * mask).sum() / mask.sum()
    loss.backward()
    for a, p in zip(found, trainer.policy.actor.trained_parameters().values(), strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if p.grad is None else p.grad, atol=1e-7)
    assert statistics["policy/positive_loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    trainer.learner.optimizer.zero_grad()
    nothing, statistics = gradient(trainer, replace(rollout, scores=torch.zeros(4)))
    assert not any(g.any() for g in nothing)
    assert statistics["policy/positive_loss"] == 0
