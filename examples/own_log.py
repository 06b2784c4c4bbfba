"""Your own logger: a function that is shown every step, once its own lines are written.

For wandb, trackio and mlflow there is one already: ``from ppo.log.to_wandb import to_wandb``.
Run: python -m examples.own_log
"""

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def letters(samples: list[ppo.Sample]) -> list[float]:
    """The share of the letter e."""
    return [sample.text.count("e") / max(len(sample.text), 1) for sample in samples]


class Best:
    """Keeps the best response of the run, and prints a line whenever there is a better one."""

    def __init__(self) -> None:
        self.score, self.text = float("-inf"), ""

    def __call__(self, step: ppo.Step) -> None:
        row = int(step.rollout.scores.argmax())
        if step.rollout.scores[row] > self.score:
            self.score, self.text = float(step.rollout.scores[row]), step.rollout.samples[row].text
            print(f"step {step.number}, mean {step.metrics['score/mean']:.2f}, best {self.score:.2f}: {self.text!r}")


def main(steps: int = 8, prompts_per_step: int = 16) -> Best:
    """The logger, after the training."""
    lab, best = load("lab"), Best()
    config = ppo.Config(
        prompts_per_step=prompts_per_step, minibatch=prompts_per_step, response_length=16, learning_rate=3e-4
    )
    trainer = ppo.Trainer(lab.model, PROMPTS, letters, config, tokenizer=lab.tokenizer)
    trainer.train(steps, on_step=best, progress=False)
    return best


if __name__ == "__main__":
    main()
