"""Your own estimator: what each token was worth, in ten lines, in the place of GAE.

It is Dr. GRPO (Liu et al. 2025): the samples of one prompt are compared by their rewards, and the difference is not
divided by the group's deviation. There is no critic. Run: python -m examples.own_advantage
"""

import torch
from torch import Tensor

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def brackets(samples: list[ppo.Sample]) -> list[float]:
    """1 for a text with a bracket in it."""
    return [float("(" in sample.text) for sample in samples]


def above_the_group(group_size: int) -> ppo.types.AdvantageFn:
    """A response's reward above the mean of its prompt's samples, for each of its tokens."""

    def advantage(rewards: Tensor, values: Tensor, mask: Tensor, samples: list[ppo.Sample]) -> tuple[Tensor, Tensor]:
        totals = rewards.sum(dim=1).view(-1, group_size)  # [prompts, samples of a prompt]
        above = (totals - totals.mean(dim=1, keepdim=True)).view(-1, 1)
        return above * mask, torch.zeros_like(rewards)  # advantages and returns, both [B, T] and 0 off the mask

    return advantage


def main(steps: int = 10, prompts_per_step: int = 8, samples_per_prompt: int = 8) -> list[float]:
    """The mean score of every step."""
    lab, scores = load("lab"), []
    config = ppo.Config(
        prompts_per_step=prompts_per_step, samples_per_prompt=samples_per_prompt, response_length=24,
        minibatch=prompts_per_step * samples_per_prompt, learning_rate=5e-4, kl_coef=0.0, value_head="none",
    )  # fmt: skip
    advantage = above_the_group(samples_per_prompt)
    trainer = ppo.Trainer(lab.model, PROMPTS, brackets, config, tokenizer=lab.tokenizer, advantage=advantage)
    trainer.train(steps, on_step=lambda step: scores.append(step.metrics["score/mean"]), progress=False)
    return scores


if __name__ == "__main__":
    print("mean score of every step:", *(f"{score:.2f}" for score in main()))
