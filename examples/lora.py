"""Training a low-rank adapter: a few per cent of the weights, and the base model is its own reference.

The trainer sees the adapter and measures KL against the model with the adapter switched off: no second copy. PEFT's
adapters work the same way. Run: python -m examples.lora
"""

import tempfile

import torch

import ppo
from models.load import load
from models.lora import LoraConfig, add_lora, load_adapter, save_adapter
from rewards.repetition import distinct_n

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def varied(samples: list[ppo.Sample]) -> list[float]:
    """Share of distinct bigrams."""
    return [distinct_n(sample.ids, 2) for sample in samples]


def main(steps: int = 5, prompts_per_step: int = 32) -> ppo.Trainer:
    """The trainer afterwards; its adapter has been written to a folder and read back."""
    lab = load("lab")
    adapter = LoraConfig(targets=("q_proj", "v_proj"), rank=8)
    add_lora(lab.model, adapter, generator=torch.Generator().manual_seed(0))
    config = ppo.Config(
        prompts_per_step=prompts_per_step, minibatch=prompts_per_step, response_length=24, learning_rate=2e-3
    )
    trainer = ppo.Trainer(lab.model, PROMPTS, varied, config, tokenizer=lab.tokenizer)
    trained = sum(p.numel() for p in trainer.policy.actor.trained_parameters().values())
    print(f"{trained:,} of {sum(p.numel() for p in lab.model.parameters()):,} weights are trained")
    trainer.train(steps)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(lab.model, folder, adapter)  # PEFT's format
        load_adapter(load("lab").model, folder)
    return trainer


if __name__ == "__main__":
    main()
