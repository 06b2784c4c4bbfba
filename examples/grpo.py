"""GRPO: no critic; the samples of one prompt are each other's baseline.

It takes ``advantage="grpo"`` (or "rloo") and several samples a prompt. KL is a loss here, with the k3 estimator, as in
DeepSeekMath. Run: python -m examples.grpo
"""

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def ends_soon(samples: list[ppo.Sample]) -> list[float]:
    """Between 0, for a full stop in the last token or nowhere, and 1, for one at once."""
    places = [sample.text.find(".") / max(len(sample.text), 1) for sample in samples]
    return [1 - place if place >= 0 else 0.0 for place in places]


def main(steps: int = 15, prompts_per_step: int = 4, samples_per_prompt: int = 8) -> list[float]:
    """Mean score before each step, and after the last."""
    lab = load("lab")
    config = ppo.Config(
        prompts_per_step=prompts_per_step,
        samples_per_prompt=samples_per_prompt,
        minibatch=prompts_per_step * samples_per_prompt,
        advantage="grpo",
        kl_as="loss",
        kl_estimator="k3",
        kl_controller="fixed",
        kl_coef=0.04,
        response_length=24,
        learning_rate=3e-4,
    )
    trainer = ppo.Trainer(lab.model, PROMPTS, ends_soon, config, tokenizer=lab.tokenizer)
    scores = []
    for _ in range(steps):
        rollout = trainer.rollout()
        scores.append(rollout.metrics["score/mean"])
        trainer.update(rollout)
    return [*scores, trainer.rollout().metrics["score/mean"]]


if __name__ == "__main__":
    print("mean score:", *(f"{score:.2f}" for score in main()))
