"""What people's own functions are, get and give: what cannot be right is one line that names the function."""

from dataclasses import replace

import pytest
import torch

import ppo
from ppo.policy_losses import policy_loss_of
from ppo.sampler import sample_policy
from tests.ppo.run.small import SMALL, id_mean, make, weights
from tests.ppo.test_seams import Critic, my_gae, reinforce

# ---------------------------------------------------------------------- what is given


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"advantage": "grpo"}, r"^advantage='grpo' is a string: for the library's own, Config\(advantage='grpo'\)$"),
        ({"policy_loss": "gspo"}, r"^policy_loss='gspo' is a string: .* Config\(policy_loss='gspo'\)$"),
        ({"sampler": 3}, r"^sampler=3 is an int: wanted a function \(policy, prompts, \*, seed, request_ids\)"),
        ({"sampler": 0}, "^sampler=0 is an int"),
        ({"advantage": ()}, r"^advantage=\(\) is \(\): wanted a function"),
        ({"reward": 3}, r"^reward=3 is an int: wanted a function \(samples\)"),
        ({"reference": "gpt2"}, r"^reference='gpt2' is a str: wanted a function \(generation, samples\)"),
        ({"config": {}}, r"^config=\{\} is a dict: wanted a ppo.Config"),
    ],
)
def test_what_cannot_be_called_is_refused_when_it_is_given(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        make(**arguments)


@pytest.mark.parametrize("name", ["on_step", "probe", "stop_when"])
def test_what_the_loop_cannot_call_is_refused_before_the_first_step(name):
    trainer = make()
    with pytest.raises(ValueError, match=f"^{name}=3 is an int: wanted a function"):
        trainer.train(1, progress=False, **{name: 3})
    assert trainer.step == 0


def test_a_value_head_beside_an_own_critic_is_refused():
    with pytest.raises(
        ValueError, match=r"^value=.*Critic would never read Config\(value_head='mlp'\): leave value_head"
    ):
        make(SMALL.replace(value_head="mlp"), value=Critic())


def test_a_warm_up_wants_a_critic_apart_and_an_own_one_is_apart():
    waiting = SMALL.replace(critic_warmup_steps=1)
    with pytest.raises(
        ValueError, match=r"critic_warmup_steps=1 needs detach_value_head=True, value_head='critic' or a"
    ):
        make(waiting)
    trainer = make(waiting, value=Critic())
    policy, all_weights = trainer.model.lm_head.weight.clone(), weights(trainer)
    trainer.train(1, progress=False)
    assert torch.equal(policy, trainer.model.lm_head.weight)
    assert not torch.equal(all_weights, weights(trainer))
    trainer.train(1, progress=False)
    assert not torch.equal(policy, trainer.model.lm_head.weight)


# ---------------------------------------------------------------------- an own critic


class Bent(Critic):
    """A critic whose answer is changed by a function."""

    name = "bent"

    def __init__(self, bend):
        super().__init__()
        self.bend = bend

    def forward(self, input_ids, attention_mask):
        return self.bend(super().forward(input_ids, attention_mask))


@pytest.mark.parametrize(
    ("bend", "problem"),
    [
        (lambda x: x.long(), r"^value=bent returned a tensor int64 \[8, \d+\]: wanted values \[B, S\] = .*, floats"),
        (lambda x: x * torch.nan, "^value=bent returned values that are NaN or infinite, such as in row 0"),
        (lambda x: (x, x), r"^value=bent returned \(a tensor .*, a tensor .*\): wanted values"),
        (lambda x: x.detach(), "^value=bent returned values without a gradient: do not detach them"),
    ],
)
@pytest.mark.parametrize("old_logprobs", ["rollout", "recompute"])
def test_a_wrong_critic_is_named_before_anything_moves(bend, problem, old_logprobs):
    trainer = make(SMALL.replace(old_logprobs=old_logprobs), value=Bent(bend))
    before = weights(trainer)
    with pytest.raises(ValueError, match=problem):
        trainer.train(1, progress=False)
    assert torch.equal(before, weights(trainer))


def test_a_frozen_critic_may_give_values_without_a_gradient():
    make(value=Critic().requires_grad_(requires_grad=False)).train(1, progress=False)


# ---------------------------------------------------------------------- an own loss


def test_a_loss_of_log_probs_and_entropy_passes_in_any_mixture():
    def mixed(new, part, *, num_tokens, num_sequences):
        loss, _ = policy_loss_of(SMALL)(new, part, num_tokens=num_tokens, num_sequences=num_sequences)
        return loss + new.values.sum() * 0 - new.entropy.sum() / num_tokens, {}

    make(policy_loss=mixed).train(1, progress=False)
    make(policy_loss=lambda new, part, **counts: (-new.entropy.sum(), {})).train(1, progress=False)


def test_a_loss_that_overflows_far_from_the_old_policy_is_skipped_as_ever():
    def huge(new, part, *, num_tokens, num_sequences):
        return (torch.exp((new.logprobs - part.old_logprobs) * 1e4) - 1).sum(), {}

    config = SMALL.replace(max_mean_ratio=None, stop_after_skipped_updates=100)
    trainer = make(config, policy_loss=huge)
    rollout = trainer.rollout()
    far = (rollout.old_logprobs - 9) * rollout.generation.mask
    with pytest.warns(RuntimeWarning, match="policy/loss is inf"):
        assert trainer.update(replace(rollout, old_logprobs=far, policy_version=None))["update/skipped_not_finite"] > 0


# ---------------------------------------------------------------------- what they get


def test_what_an_own_function_changes_in_place_stays_its_own():
    def spoiling(rewards, values, mask, samples):
        answer = my_gae(rewards, values, mask, samples)
        rewards.zero_()
        values.fill_(7.0)
        mask.zero_()
        samples[0].ids.clear()
        return answer

    def noting(policy, prompts, *, seed, request_ids):
        drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
        for prompt in prompts:
            prompt.ids.append(5)
        return replace(drawn, info=[{"turns": [1, 2]} for _ in prompts])

    def clearing(samples):
        scores = id_mean(samples)
        for sample in samples:
            sample.info["turns"].clear()
        return scores

    plain, trainer = make(), make(advantage=spoiling, sampler=noting, reward=clearing)
    expected, found = plain.rollout(), trainer.rollout()
    assert [s.info for s in found.samples] == [{"turns": [1, 2]}] * 8
    assert [s.ids for s in found.samples] == [s.ids for s in expected.samples]
    assert [p.ids for p in trainer.prompts] == [p.ids for p in plain.prompts]
    for name in ("rewards", "old_values", "advantages", "returns"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(found.generation.action_mask, expected.generation.action_mask)


def test_a_logger_that_clears_the_metrics_clears_its_own():
    stopped = []

    def stop(metrics):
        stopped.append(metrics["score/mean"])
        return False

    make().train(2, on_step=lambda step: step.metrics.clear(), stop_when=stop, progress=False)
    assert len(stopped) == 2


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize("answer", [None, [1.0], 5])
def test_a_reward_of_the_wrong_kind_is_named(answer):
    def mine(samples):
        return answer

    found = {None: "None", 5: "an int"}.get(answer if answer != [1.0] else "", "1 values")
    with pytest.raises(
        ValueError, match=f"^reward=.*mine returned {found} for 8 samples: wanted one number a sample, or"
    ):
        make(SMALL.replace(reward_timeout_seconds=60), reward=mine).rollout()


class Object:
    """A reference as an object, from a function."""

    name = "theirs"

    def __init__(self, function):
        self.logprobs = function


@pytest.mark.parametrize("is_object", [False, True])
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda g: None, r"returned None: wanted log-probs \[B, T\] = \[8, \d\], floats"),
        (lambda g: g.logprobs[:, :1], r"returned a tensor \[8, 1\]: wanted log-probs"),
        (lambda g: g.tokens, r"returned a tensor int64 \[8, \d\]: wanted log-probs"),
    ],
)
def test_a_wrong_reference_is_named(answer, problem, is_object):
    def theirs(generation, samples):
        return answer(generation)

    reference, name = (Object(theirs), "theirs") if is_object else (theirs, ".*theirs")
    with pytest.raises(ValueError, match=f"^reference={name} {problem}"):
        make(reference=reference).rollout()


def test_an_object_is_as_good_a_reference_as_a_function():
    def theirs(generation, samples):
        return torch.full(generation.mask.shape, -2.0)

    one, other = make(reference=theirs).rollout(), make(reference=Object(theirs)).rollout()
    assert torch.equal(one.ref_logprobs, other.ref_logprobs)
    assert torch.equal(one.ref_logprobs, -2.0 * one.generation.mask)


@pytest.mark.parametrize(
    ("old_logprobs", "problem"),
    [("rollout", "the first minibatch has a ratio other than 1"), ("recompute", "sampler's log-probs are not those")],
)
def test_a_ratio_that_an_own_sampler_spoiled_is_told_so(old_logprobs, problem):
    def mine(policy, prompts, *, seed, request_ids):
        drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
        return replace(drawn, logprobs=drawn.logprobs * 1.4)

    remedy = (
        r"; sampler=.*mine gave them: take those of policy.measure\(generation\), or correct .* Config\(importance="
    )
    with pytest.raises(ppo.CheckError, match=f"{problem}.*{remedy}"):
        make(SMALL.replace(old_logprobs=old_logprobs), sampler=mine).train(1, progress=False)
    trainer = make(policy_loss=reinforce)
    rollout = trainer.rollout()
    with pytest.raises(ppo.CheckError) as error:  # nobody but the library drew
        trainer.update(replace(rollout, old_logprobs=rollout.old_logprobs * 1.4))
    assert "sampler=" not in str(error.value)
