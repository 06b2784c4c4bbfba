"""Your own loop: rollout and update are the two halves of a step, and everything between them is yours.

The loop skips the update when all scores are equal (then there is nothing to learn). It saves and resumes in the
middle. Run: python -m examples.own_loop
"""

import tempfile

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def questions(samples: list[ppo.Sample]) -> list[float]:
    """1 for a text with a bracket in it."""
    return [float("(" in sample.text) for sample in samples]


def main(steps: int = 8, prompts_per_step: int = 32) -> list[dict[str, float]]:
    """The metrics of every step."""
    lab = load("lab")
    config = ppo.Config(
        prompts_per_step=prompts_per_step, minibatch=prompts_per_step, response_length=24, learning_rate=3e-4
    )
    trainer = ppo.Trainer(lab.model, PROMPTS, questions, config, tokenizer=lab.tokenizer)
    history = []
    with tempfile.TemporaryDirectory() as folder:
        for step in range(steps):
            if step == steps // 2:
                trainer.save(folder)
                trainer = ppo.Trainer.resume(folder, PROMPTS, questions)  # goes on bit for bit
            rollout = trainer.rollout()
            if rollout.metrics["score/std"] == 0:
                print(f"step {step}: all scores are the same, no update")
                continue
            metrics = {**rollout.metrics, **trainer.update(rollout)}
            history.append(metrics)
            print(
                f"step {step}: score {metrics['score/mean']:.2f}, KL {metrics['kl/per_sequence']:.2f} nats a response"
            )
    return history


if __name__ == "__main__":
    main()
