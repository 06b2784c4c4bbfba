"""Whether a run of the lab model goes on from a checkpoint, and begins again from its seed, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import ppo
from benchmarks.soak import PROMPTS, RETAIN
from models.load import load
from models.lora import LoraConfig, add_lora, linear_targets

RUNS: dict[str, dict[str, Any]] = {
    "linear": {},
    "critic": {"value_head": "critic"},
    "autocast": {"autocast": "bfloat16", "gradient_checkpointing": True},
    "filters": {"top_p": 0.9, "temperature": 0.8},
    "lora": {},
}
RUN = ppo.Config(
    prompts_per_step=16, minibatch=8, microbatch=4, response_length=24, epochs=2, learning_rate=1e-4, retain_coef=0.5,
    retain_loss="kl", retain_sequences=2, retain_tokens=24, deterministic=True,
)  # fmt: skip


def compare_bits(name: str, device: torch.device, folder: Path) -> dict[str, list[str]]:
    """What differs between a whole run and one that was resumed half way, or that began again."""
    whole, begun = make_run(name, device), make_run(name, device)
    first, again = (steps(run) for run in (whole, begun))
    repeated = different(first | bits(whole), again | bits(begun))
    begun.save(folder / "checkpoint")
    base = adapted(name, load("lab").model) if name == "lora" else None
    resumed = ppo.Trainer.resume(
        folder / "checkpoint", PROMPTS, letter_e, model=base, tokenizer=whole.tokenizer, retain=RETAIN, device=device
    )
    return {"repeated": repeated, "resumed": different(steps(whole) | bits(whole), steps(resumed) | bits(resumed))}


def make_run(name: str, device: torch.device) -> ppo.Trainer:
    lab = load("lab")
    config = RUN.replace(**RUNS[name])
    return ppo.Trainer(
        adapted(name, lab.model), PROMPTS, letter_e, config, tokenizer=lab.tokenizer, retain=RETAIN, device=device
    )


def adapted(name: str, model: Any) -> Any:
    if name == "lora":
        torch.manual_seed(0)  # an adapter starts with random numbers
        add_lora(model, LoraConfig(linear_targets(model), rank=4))
    return model


def letter_e(samples: list[ppo.Sample]) -> list[float]:
    """The share of the letter e."""
    return [s.text.count("e") / max(len(s.text), 1) for s in samples]


def steps(trainer: ppo.Trainer) -> dict[str, torch.Tensor]:
    """Two steps: the tokens and the numbers of each, without times and rates."""
    found: dict[str, torch.Tensor] = {}
    for _ in range(2):
        made = trainer.rollout()
        metrics = {**made.metrics, **trainer.update(made)}
        found[f"tokens of step {trainer.step}"] = made.generation.tokens.cpu()
        for name, value in metrics.items():
            if not name.startswith(("time/", "generate/")):
                found[f"{name} of step {trainer.step}"] = torch.tensor(value, dtype=torch.float64)
    return found


def bits(trainer: ppo.Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in trainer.policy.actor.named_parameters()}


def different(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """The names under which the two differ; NaN is equal to itself."""
    names = sorted(left.keys() | right.keys())
    return [n for n in names if n not in left or n not in right or not same(left[n], right[n])]


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())
