"""Several processes: the same program, started by torchrun, inside ``ppo.process_group()``.

Each process samples and scores its share of the prompts. The gradients are summed: the update is that of one process.
Run: torchrun --nproc-per-node 2 -m examples.several_processes      (without torchrun it runs in one process)
"""

import ppo
from models.load import load

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def many_commas(samples: list[ppo.Sample]) -> list[float]:
    """Commas a response."""
    return [float(sample.text.count(",")) for sample in samples]


def main(steps: int = 5, prompts_per_step: int = 32) -> float:
    """Mean score after the last step, over all processes."""
    with ppo.process_group() as processes:
        lab = load("lab")
        config = ppo.Config(
            prompts_per_step=prompts_per_step,  # over all processes
            minibatch=prompts_per_step,
            response_length=24,
            learning_rate=3e-4,
        )
        trainer = ppo.Trainer(lab.model, PROMPTS, many_commas, config, tokenizer=lab.tokenizer)
        trainer.train(steps)
        score = trainer.rollout().metrics["score/mean"]
        if processes.is_first:
            print(f"{processes.count} processes, mean score {score:.4f}")
    return score


if __name__ == "__main__":
    main()
