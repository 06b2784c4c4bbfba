"""A reward for every token: a bad token is punished where it stands, not at the end of the response.

The function returns a list of numbers for each sample, one for each response token. With one score at the end, the
critic would have to find out which of 24 tokens earned it. Run: python -m examples.token_reward
"""

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def no_repeats(samples: list[ppo.Sample]) -> list[list[float]]:
    """-1 on every token that stood in the response before."""
    return [[-float(token in sample.ids[:t]) for t, token in enumerate(sample.ids)] for sample in samples]


def main(steps: int = 10, prompts_per_step: int = 32) -> list[float]:
    """Repeated tokens a response, before each step and after the last."""
    lab = load("lab")
    config = ppo.Config(
        prompts_per_step=prompts_per_step,
        minibatch=prompts_per_step,
        response_length=24,
        learning_rate=3e-4,
        gae_lambda=0.8,  # a token is to blame for what follows soon
    )
    trainer = ppo.Trainer(lab.model, PROMPTS, no_repeats, config, tokenizer=lab.tokenizer)
    repeats = []
    for _ in range(steps):
        rollout = trainer.rollout()
        repeats.append(-rollout.metrics["score/mean"])  # with token rewards a score is their sum
        trainer.update(rollout)
    return [*repeats, -trainer.rollout().metrics["score/mean"]]


if __name__ == "__main__":
    print("repeated tokens a response:", *(f"{number:.1f}" for number in main()))
