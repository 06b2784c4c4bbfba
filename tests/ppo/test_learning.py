"""The trainer learns simple tasks from every seed: emit a given token, keep a text, predict a return."""

import pytest
import torch

from ppo import Config, Trainer
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3], [4, 5], [6, 7], [8, 9]]
TOY = Config(
    prompts_per_step=16, minibatch=16, response_length=5, epochs=4, learning_rate=1e-2, kl_coef=0.0, value_coef=0.5
)

# Once all scores are equal, whitened advantages are noise. At TOY's rate, one run in twenty then loses its top score.
SLOWER = {"learning_rate": 3e-3}


def share_of_sevens(samples):
    return [s.ids.count(7) / 5 for s in samples]


def final_score(config, reward=share_of_sevens, steps=25, dtype=torch.float32, **arguments):
    """The trainer, and the mean score of a rollout after the last step. By chance it would be 1/23."""
    trainer = Trainer(tiny_gpt2(config.seed, eos=None).to(dtype), PROMPTS, reward, config, **arguments)
    trainer.train(steps, progress=False)
    return trainer, trainer.rollout().metrics["score/mean"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_head": "mlp", "detach_value_head": True},
        {"value_head": "critic"},
        {"advantage": "grpo", "samples_per_prompt": 8, "prompts_per_step": 4},
        {"advantage": "rloo", "samples_per_prompt": 8, "prompts_per_step": 4},
        {"adam_eps_style": "tensorflow", "scale_scores": True, "whiten_rewards": True},
        {"autocast": "bfloat16", "gradient_checkpointing": True},
        {"moment_dtype": "bfloat16"},
    ],
    ids=lambda c: "-".join(map(str, c.values())) or "default",
)
def test_a_given_token_is_learned(seed, changes):
    _, score = final_score(TOY.replace(seed=seed, **SLOWER, **changes), steps=60)
    assert score > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_a_given_token_is_learned_in_bfloat16(seed, moments):
    """Weights, gradients and, in one case, moments are all bfloat16: half the memory of float32."""
    trainer, score = final_score(TOY.replace(seed=seed, moment_dtype=moments, **SLOWER), steps=60, dtype=torch.bfloat16)
    assert score > 0.9
    assert all(p.dtype == torch.bfloat16 for p in trainer.model.parameters())


def test_a_strong_kl_penalty_holds_the_policy_back():
    _, free = final_score(TOY, steps=15)
    _, held = final_score(TOY.replace(kl_coef=5.0, kl_controller="fixed"), steps=15)
    assert held < 0.5 < free


def test_kl_as_a_loss_holds_the_policy_back():
    _, held = final_score(TOY.replace(kl_as="loss", kl_estimator="k2", kl_coef=5.0, kl_controller="fixed"), steps=15)
    assert held < 0.5


@pytest.mark.parametrize("kind", ["lm", "kl"])
def test_retain_text_is_kept(kind):
    """PPO pulls the policy to token 7 everywhere. The retain loss keeps a text that never contains it."""
    text = [2, 3, 4, 5, 6, 8, 9, 10] * 2

    def text_loss(**changes):
        trainer, score = final_score(TOY.replace(retain_tokens=16, retain_sequences=2, **changes), retain=[text])
        ids = torch.tensor([text])
        return trainer.model(input_ids=ids, labels=ids).loss.item(), score

    start = tiny_gpt2(0, eos=None).eval()
    ids = torch.tensor([text])
    before = start(input_ids=ids, labels=ids).loss.item()
    forgotten, _ = text_loss()
    kept, score = text_loss(retain_coef=1.0, retain_loss=kind)
    assert forgotten > before + 0.5
    assert kept < before + 0.25
    assert score > 0.3  # chance is 1/23


def test_the_critic_learns_the_return():
    """With a fixed policy, the critic learns to predict the score from the first token on.

    The value before the first token cannot know the score, so at most 4/5 of the variance can be explained.
    """
    config = TOY.replace(
        prompts_per_step=32, learning_rate=1e-9, value_learning_rate=3e-3, value_head="critic", value_clip=None
    )
    trainer = Trainer(tiny_gpt2(3, eos=None), PROMPTS, lambda samples: [float(s.ids[0] > 11) for s in samples], config)
    explained = []
    trainer.train(45, stop_when=lambda m: explained.append(m["value/explained_variance"]), progress=False)
    assert explained[0] == pytest.approx(0, abs=1e-3)
    assert 0.7 < sum(explained[-5:]) / 5 < 0.9
