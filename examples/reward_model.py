"""A reward model: any Hugging Face sequence classifier, called inside the reward function.

The classifier here has random weights, so that nothing is downloaded. Put
``AutoModelForSequenceClassification.from_pretrained("…")`` and its own tokenizer in its place. A classifier with
the policy's tokenizer can read ids; any other reads ``sample.prompt + sample.text``.
Run: python -m examples.reward_model
"""

import torch
from transformers import GPTNeoConfig, GPTNeoForSequenceClassification, PreTrainedModel

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def make_classifier(vocab_size: int) -> PreTrainedModel:
    """A classifier of one output, with weights from seed 0. Without padding ids it would score the padding."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=vocab_size, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=256, num_labels=1, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return GPTNeoForSequenceClassification(config).eval()


def reward_of(classifier: PreTrainedModel) -> ppo.RewardFn:
    """The classifier's output for prompt and response, as a reward function."""

    @torch.no_grad()
    def reward(samples: list[ppo.Sample]) -> torch.Tensor:
        texts = [torch.tensor(sample.prompt_ids + [i for i in sample.ids if i != 0]) for sample in samples]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return classifier(input_ids=ids, attention_mask=ids != 0).logits[:, 0]

    return reward


def main(steps: int = 15, prompts_per_step: int = 64) -> list[float]:
    """Mean score before the training and after it."""
    lab = load("lab")
    config = ppo.Config(
        prompts_per_step=prompts_per_step,
        minibatch=prompts_per_step,
        response_length=12,
        learning_rate=5e-4,
        kl_coef=0.02,
    )
    reward = reward_of(make_classifier(lab.model.config.vocab_size))
    trainer = ppo.Trainer(lab.model, PROMPTS, reward, config, tokenizer=lab.tokenizer)
    first = trainer.rollout().metrics["score/mean"]
    trainer.train(steps)
    return [first, trainer.rollout().metrics["score/mean"]]


if __name__ == "__main__":
    print("mean score before and after:", *(f"{score:.2f}" for score in main()))
