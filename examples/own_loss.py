"""Your own policy loss: GSPO (Zheng et al. 2025), whose ratio is that of the whole response.

A loss sees the training forward and the rollout's rows of one microbatch. It sums over the microbatch, and divides by
the count of the whole minibatch. So the gradient does not depend on how the minibatch is cut.
Run: python -m examples.own_loss
"""

import torch
from torch import Tensor

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]
CLIP = 3e-3  # of the sequence ratio, which moves far less than a token's


def brackets(samples: list[ppo.Sample]) -> list[float]:
    """1 for a text with a bracket in it."""
    return [float("(" in sample.text) for sample in samples]


def gspo(
    new: ppo.Evaluation, part: ppo.Rollout, *, num_tokens: int, num_sequences: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over sequences of max(-A s, -A clip(s)), with s = exp of the mean of log(new / old) over a response."""
    mask = part.generation.action_mask
    lengths = mask.sum(dim=1)
    advantage = part.advantages.sum(dim=1) / lengths  # one for the response
    ratio = torch.exp(((new.logprobs - part.old_logprobs) * mask).sum(dim=1) / lengths)
    plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)
    share = (clipped > plain).float().sum() / num_sequences
    return torch.maximum(plain, clipped).sum() / num_sequences, {"clipped_sequences": share}


def main(steps: int = 10, prompts_per_step: int = 8, samples_per_prompt: int = 8) -> list[float]:
    """The mean score of every step."""
    lab, scores = load("lab"), []
    config = ppo.Config(
        prompts_per_step=prompts_per_step, samples_per_prompt=samples_per_prompt, response_length=24, epochs=2,
        minibatch=prompts_per_step * samples_per_prompt // 2, microbatch=prompts_per_step, learning_rate=5e-4,
        kl_coef=0.0, advantage="grpo",
    )  # fmt: skip
    trainer = ppo.Trainer(lab.model, PROMPTS, brackets, config, tokenizer=lab.tokenizer, policy_loss=gspo)
    trainer.train(steps, on_step=lambda step: scores.append(step.metrics["score/mean"]), progress=False)
    return scores


if __name__ == "__main__":
    print("mean score of every step:", *(f"{score:.2f}" for score in main()))
