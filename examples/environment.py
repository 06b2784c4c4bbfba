"""A tool that the policy learns to use: it closes the call, a calculator writes the result, the policy repeats it.

At the start the lab model closes a quarter of the calls and hardly ever repeats a result. After 140 steps it does both.
Only the policy's own tokens are trained on; the calculator's are read. Run: python -m examples.environment
"""

import time
from typing import Any

import ppo
from models.load import load

ROWS = [{"prompt": f">>> print({a} + {b}", "result": str(a + b)} for a in range(11) for b in range(11 - a)]


class Calculator:
    """Two turns of one token each: ``)`` calls the calculator, then the result is asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.is_called = False

    def reset(self, row: ppo.types.Row) -> list[int]:
        """Begin with the prompt of the row."""
        self.result = row["result"]
        return self.tokenizer(row["prompt"])["input_ids"]

    def step(self, ids: list[int]) -> tuple[list[int] | None, float]:
        """0.3 for a call, 1 for the right result; an episode without a call is over."""
        text = self.tokenizer.decode(ids).strip()
        if self.is_called:
            return None, float(text == self.result)
        self.is_called = text == ")"
        return (self.tokenizer(f" = {self.result}:")["input_ids"], 0.3) if self.is_called else (None, 0.0)


def main(steps: int = 140, seed: int = 0) -> list[float]:
    """The share of right results in every step."""
    lab, shares = load("lab"), []
    config = ppo.Config(
        advantage="grpo", prompts_per_step=16, samples_per_prompt=8, minibatch=64, epochs=2, response_length=8,
        learning_rate=2e-4, entropy_coef=0.01, kl_coef=0.0, kl_controller="fixed", seed=seed,
    )  # fmt: skip
    sampler = ppo.EnvironmentSampler(lambda: Calculator(lab.tokenizer), turn_length=1)

    def count(step: ppo.Step) -> None:
        shares.append(sum(sample.info[-1].reward == 1 for sample in step.rollout.samples) / len(step.rollout))

    trainer = ppo.Trainer(lab.model, ROWS, ppo.turn_rewards, config, tokenizer=lab.tokenizer, sampler=sampler)
    trainer.train(steps, on_step=count, progress=False)
    return shares


if __name__ == "__main__":
    for seed in range(3):
        started, shares = time.perf_counter(), main(seed=seed)
        print(f"seed {seed}: {shares[0]:.0%} in the first step, {sum(shares[-5:]) / 5:.0%} in the last five,",
              f"{time.perf_counter() - started:.0f} s")  # fmt: skip
