"""Your own critic: a small model that was a reward model before, of another size than the policy.

A critic is a module from token ids and their mask, both [B, S], to values [B, S]: entry s is the value before token
s + 1. It trains beside the policy, at ``value_learning_rate``, and lies apart in a checkpoint (value.safetensors).
Run: python -m examples.own_critic
"""

import torch
from torch import Tensor, nn
from transformers import GPTNeoConfig, GPTNeoForSequenceClassification, PreTrainedModel

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def make_reward_model(vocab_size: int) -> PreTrainedModel:
    """Stands for ``AutoModelForSequenceClassification.from_pretrained("…")``: random weights, from seed 0."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=vocab_size, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=256, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    return GPTNeoForSequenceClassification(config)


class FromRewardModel(nn.Module):
    """The reward model's body and its score head, asked at every position in the place of the last one."""

    def __init__(self, reward_model: PreTrainedModel) -> None:
        super().__init__()
        self.body, self.score = reward_model.transformer, reward_model.score

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
        return self.score(hidden).squeeze(-1)


def brackets(samples: list[ppo.Sample]) -> list[float]:
    """1 for a text with a bracket in it."""
    return [float("(" in sample.text) for sample in samples]


def main(steps: int = 10, prompts_per_step: int = 64) -> list[float]:
    """The share of the returns' variance that the critic explains, in every step."""
    lab, explained = load("lab"), []
    config = ppo.Config(
        prompts_per_step=prompts_per_step, minibatch=prompts_per_step, response_length=24, learning_rate=1e-4,
        value_learning_rate=3e-3, value_coef=1.0, value_clip=None, kl_coef=0.0,
    )  # fmt: skip
    critic = FromRewardModel(make_reward_model(lab.model.config.vocab_size))
    trainer = ppo.Trainer(lab.model, PROMPTS, brackets, config, tokenizer=lab.tokenizer, value=critic)
    trainer.train(steps, on_step=lambda step: explained.append(step.metrics["value/explained_variance"]))
    return explained


if __name__ == "__main__":
    print("explained variance of every step:", *(f"{share:.2f}" for share in main()))
