"""One PPO step: what a rollout holds and what an update does."""

import copy

import pytest
import torch

import ppo
from ppo import Config, Sampling, Trainer, generate
from ppo.buffer import rows
from ppo.lm.backbone import blocks
from tests.fakes import tiny_bloom, tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=2, learning_rate=1e-3)


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def make(config=SMALL, model=None, **arguments):
    return Trainer(model or tiny_gpt2(), PROMPTS, arguments.pop("reward", id_mean), config, **arguments)


def test_a_rollout_holds_consistent_tensors():
    trainer = make(SMALL.replace(kl_coef=0.3, kl_controller="fixed", whiten_advantages=False))
    with torch.no_grad():  # move the policy away from its reference
        trainer.model.transformer.h[0].mlp.c_fc.weight += 0.3
    rollout = trainer.rollout()
    mask = rollout.generation.mask
    assert [s.ids for s in rollout.samples] == [
        t[m].tolist() for t, m in zip(rollout.generation.tokens, mask, strict=True)
    ]
    assert rollout.scores.tolist() == pytest.approx(id_mean(rollout.samples))
    assert torch.allclose(rollout.kl, rollout.old_logprobs - rollout.ref_logprobs)
    assert rollout.kl.abs().sum() > 0
    expected = -0.3 * rollout.kl
    for b, length in enumerate(mask.sum(dim=1).tolist()):
        expected[b, length - 1] += rollout.scores[b]
    assert torch.allclose(rollout.rewards, expected, atol=1e-6)
    assert torch.allclose(rollout.returns, rollout.advantages + rollout.old_values, atol=1e-6)
    for name in ("old_logprobs", "old_values", "ref_logprobs", "kl", "rewards", "advantages", "returns"):
        values = getattr(rollout, name)
        assert values.shape == mask.shape
        assert not values[~mask].any(), name
        assert not values.requires_grad


@pytest.mark.parametrize("model", [tiny_gpt2, tiny_llama, tiny_bloom])
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_k": 6}, {"top_p": 0.8, "min_response_length": 3},
                                     {"old_logprobs": "recompute"}])  # fmt: skip
def test_the_first_minibatch_has_ratio_one_and_the_reference_has_no_kl(model, changes):
    trainer = make(SMALL.replace(epochs=1, minibatch=8, **changes), model=model())
    rollout = trainer.rollout()
    assert rollout.kl.abs().max() < 1e-4
    metrics = trainer.update(rollout)
    assert metrics["policy/ratio"] == pytest.approx(1, abs=1e-4)
    assert metrics["rollout/logprob_gap"] < 1e-4
    assert metrics["policy/clip_fraction"] == 0


@pytest.mark.parametrize("changes", [{}, {"kl_as": "loss", "kl_estimator": "k3", "entropy_coef": 0.1},
                                     {"value_head": "critic"}, {"gradient_checkpointing": True}])  # fmt: skip
@pytest.mark.parametrize("split", [{"microbatch": 1}, {"microbatch": 2}, {"microbatch_tokens": 11}])
def test_microbatches_do_not_change_the_gradient(changes, split):
    """1 x 8 and 8 x 1 rows give the same gradient, on rows of different lengths."""

    def gradients(**more):
        trainer = make(SMALL.replace(minibatch=8, **changes, **more))
        rollout = trainer.rollout()
        assert len(set(rollout.generation.lengths.tolist())) > 1
        trainer.learner.gradient(rollout, trainer.learner.draw_retain())
        return torch.cat(
            [p.grad.flatten() for p in trainer.policy.actor.trained_parameters().values() if p.grad is not None]
        )

    whole, parts = gradients(), gradients(**split)
    assert whole.norm() > 0
    assert torch.allclose(whole, parts, atol=1e-6 * float(whole.abs().max()) + 1e-7)


def test_row_order_does_not_change_the_gradient():
    trainer = make(SMALL.replace(minibatch=8))
    rollout = trainer.rollout()

    def gradient(r):
        trainer.learner.optimizer.zero_grad()
        trainer.learner.gradient(r, trainer.learner.draw_retain())
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    a = gradient(rollout)
    b = gradient(rows(rollout, torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])))
    assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


def test_two_seeded_runs_are_identical_and_another_seed_is_not():
    def run(seed):
        trainer = make(SMALL.replace(seed=seed))
        trainer.train(2, progress=False)
        return weights(trainer.model)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_the_reference_does_not_change():
    trainer = make()
    before = weights(trainer.model).clone()
    trainer.train(2, progress=False)
    assert torch.equal(weights(trainer.state.frozen), before)
    assert not torch.equal(weights(trainer.model), before)


def test_no_reference_is_kept_where_none_is_needed():
    assert make(SMALL.replace(kl_coef=0.0)).state.frozen is None


def test_a_callable_reference():
    trainer = make(reference=lambda generation, samples: generation.logprobs - 0.25)
    rollout = trainer.rollout()
    assert torch.allclose(rollout.kl, 0.25 * rollout.generation.mask)
    assert trainer.state.frozen is None
    with pytest.raises(ValueError, match=r"returned a tensor \[8, 1\]: wanted log-probs \[B, T\] = \[8, 6\]"):
        make(reference=lambda generation, samples: torch.zeros(8, 1)).rollout()


def test_token_rewards_go_to_their_tokens():
    trainer = make(SMALL.replace(kl_coef=0.0), reward=lambda samples: [[float(i) for i in s.ids] for s in samples])
    rollout = trainer.rollout()
    assert torch.equal(rollout.rewards, (rollout.generation.tokens * rollout.generation.mask).float())
    assert torch.allclose(rollout.scores, rollout.rewards.sum(dim=1))


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_group_relative_advantages_need_no_critic(estimator):
    config = SMALL.replace(prompts_per_step=2, samples_per_prompt=4, advantage=estimator, kl_coef=0.0)
    trainer = make(config)
    assert trainer.policy.actor.value_head is None
    rollout = trainer.rollout()
    prompts = [tuple(s.prompt_ids) for s in rollout.samples]
    assert prompts[0] == prompts[3] != prompts[4] == prompts[7]
    per_sequence = rollout.advantages[:, 0]
    assert per_sequence.view(2, 4).sum(dim=1).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert "value/loss" not in trainer.update(rollout)


def test_missing_eos_costs_its_penalty():
    config = SMALL.replace(kl_coef=0.0, missing_eos_penalty=2.0)
    rollout = make(config, reward=lambda samples: [0.0] * len(samples)).rollout()
    ended = rollout.generation.is_ended
    assert 0 < int(ended.sum()) < 8 or not ended.any()
    assert torch.equal(rollout.rewards.sum(dim=1), torch.where(ended, 0.0, -2.0))


def test_scores_are_scaled_and_clipped_for_training_but_logged_raw():
    config = SMALL.replace(kl_coef=0.0, scale_scores=True, clip_scores=0.5)
    rollout = make(config, reward=lambda samples: [100.0 * i for i in range(8)]).rollout()
    assert rollout.scores.tolist() == [100.0 * i for i in range(8)]
    assert rollout.rewards.sum(dim=1).tolist() == pytest.approx(
        [min(i * 100 / 244.949, 0.5) for i in range(8)], abs=1e-3
    )


def test_a_step_ends_when_the_policy_went_too_far():
    trainer = make(SMALL.replace(learning_rate=0.05, epochs=8, stop_kl_per_token=0.01))
    metrics = trainer.update(trainer.rollout())
    assert metrics["update/stopped_early"] == 1
    assert metrics["update/minibatches"] < 16


def test_a_wild_ratio_skips_the_minibatch():
    trainer = make(SMALL.replace(max_mean_ratio=2.0, epochs=1, minibatch=8))
    rollout = trainer.rollout()
    before = weights(trainer.model).clone()
    wild = copy.copy(rollout)
    object.__setattr__(wild, "old_logprobs", (rollout.old_logprobs - 3) * rollout.generation.mask)
    object.__setattr__(wild, "policy_version", None)  # of no known policy, or the check of ratio 1 would come first
    metrics = trainer.update(wild)
    assert metrics["update/skipped_minibatches"] == 1
    assert torch.equal(weights(trainer.model), before)


def test_the_adaptive_coefficient_moves():
    trainer = make(SMALL.replace(target_kl_per_sequence=1000.0))
    trainer.train(1, progress=False)
    assert trainer.kl.coef == pytest.approx(0.2 * (1 - 0.2 * 8 / 10_000))


def test_a_reward_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match="returned 1 values for 8 samples"):
        make(reward=lambda samples: [1.0]).train(1, progress=False)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone():
    trainer = make()
    rollout = trainer.rollout()
    object.__setattr__(rollout, "advantages", rollout.advantages * float("nan"))
    before = weights(trainer.model).clone()
    with (
        pytest.warns(RuntimeWarning, match="1 of 3"),
        pytest.raises(FloatingPointError, match="policy/loss is nan; 3 of"),
    ):
        trainer.update(rollout)
    assert torch.equal(weights(trainer.model), before)


def test_bfloat16_autocast_and_a_frozen_trunk():
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    trainer = make(SMALL.replace(autocast="bfloat16"), model=model)
    before = model.model.embed_tokens.weight.clone()
    metrics = trainer.update(trainer.rollout())
    assert metrics["rollout/logprob_gap"] < 0.02
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_separate_critic_is_asked_alone_where_the_sampler_knows_the_log_probs():
    """Its values equal those of the whole training forward, and the policy's half does not run."""
    trainer = make(SMALL.replace(value_head="critic", microbatch=2, learning_rate=1e-2, kl_coef=0.0))
    trainer.update(trainer.rollout())
    generation = trainer.rollout().generation
    whole = trainer.policy.measure(generation)
    backbones, calls = (trainer.policy.actor.backbone, trainer.policy.actor.critic_backbone), []
    for backbone, name in zip(backbones, ("policy", "critic"), strict=True):
        blocks(backbone.model)[0].register_forward_hook(lambda *_, name=name: calls.append(name))
    logprobs, values = trainer.policy.old_statistics(generation)
    assert calls == ["critic"] * (len(generation) // 2)
    assert torch.equal(values, whole.values)
    assert values.abs().max() > 0
    assert torch.equal(logprobs, generation.logprobs)


def test_public_names_exist():
    assert all(hasattr(ppo, name) for name in ppo.__all__)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.nan, "the weight transformer.h.1.mlp.c_fc.weight holds NaN before any training"),
        (torch.inf, "this GPT2LMHeadModel cannot be trained: its states are not finite before any training"),
    ],
)
def test_a_model_that_is_broken_from_the_start_is_named_so(value, told):
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = value
    with pytest.raises(ValueError, match=told):
        Trainer(model, [[1, 2]], lambda samples: [0.0] * len(samples))
    with pytest.raises(ValueError, match="logits are NaN or infinite, so nothing can be sampled: look at its weights"):
        generate(model, [[1, 2]], Sampling(response_length=2))


def test_an_update_needs_no_gradients_switched_on():
    config = Config(prompts_per_step=2, minibatch=2, response_length=3)
    with torch.no_grad():
        trainer = Trainer(tiny_gpt2(), [[2, 3], [4]], lambda samples: [float(len(s.ids)) for s in samples], config)
        trainer.train(1, progress=False)
    assert trainer.step == 1
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inside torch\.inference_mode\(\) nothing can be"):
        Trainer(tiny_gpt2(), [[2, 3]], lambda samples: [0.0] * len(samples), config)


def test_texts_to_keep_that_no_loss_reads_are_mentioned():
    config = Config(prompts_per_step=2, minibatch=2, response_length=3)
    with pytest.warns(RuntimeWarning, match=r"retain=… is not used: Config\.retain_coef is 0"):
        Trainer(tiny_gpt2(), [[2, 3]], lambda samples: [0.0] * len(samples), config, retain=[[1, 2, 3]])


def test_a_trainer_says_how_it_draws():
    model = tiny_gpt2()
    model.generation_config.eos_token_id = 7
    trainer = Trainer(model, [[1, 2]], lambda samples: [0.0] * len(samples), Config(temperature=0.5, response_length=4))
    assert (trainer.sampling.temperature, trainer.sampling.eos_ids) == (0.5, (7,))
