"""A reward in ten lines: no reward model, no labels, a Python function.

Shows the whole interface: a model, prompts, a function from samples to scores. Run: python -m examples.reward
"""

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def short_words(samples: list[ppo.Sample]) -> list[float]:
    """Minus the mean length of the words; an empty response counts as one word of 20 letters."""
    words = [sample.text.split() or ["x" * 20] for sample in samples]
    return [-sum(map(len, some)) / len(some) for some in words]


def main(steps: int = 20, prompts_per_step: int = 32) -> list[float]:
    """Mean score before the training and after it."""
    lab = load("lab")
    config = ppo.Config(
        prompts_per_step=prompts_per_step, minibatch=prompts_per_step, response_length=24, learning_rate=3e-4
    )
    trainer = ppo.Trainer(lab.model, PROMPTS, short_words, config, tokenizer=lab.tokenizer)
    first = trainer.rollout().metrics["score/mean"]
    trainer.train(steps)
    last = trainer.rollout()
    print("\n".join(sample.text for sample in last.samples[:3]))
    return [first, last.metrics["score/mean"]]


if __name__ == "__main__":
    print("mean score before and after:", *(f"{score:.2f}" for score in main()))
