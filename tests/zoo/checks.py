"""What must hold for every kind of causal LM: each check builds a small model and raises where something is wrong.

The model's own forward, one unpadded prompt at a time and without a cache, says what is right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import ppo

from .configs import small_model

PROMPTS = [[5, 9, 13], [7], [3, 8, 22, 41, 17, 60, 2, 33, 19], [11, 12, 30, 9]]
TOLERANCE = 1e-4  # of log-probs in nats; of logits relative to the largest


def own_forward(kind: str) -> None:
    """The model's own forward works: if not, its small config is no good."""
    _own_logits(small_model(kind), PROMPTS[0])


def greedy(kind: str) -> None:
    """Each greedy token is the likeliest one by the model's own forward."""
    model = small_model(kind)
    generation = ppo.generate(model, PROMPTS, ppo.Sampling(response_length=8, temperature=0.0))
    for prompt, tokens in zip(PROMPTS, generation.tokens.tolist(), strict=True):
        for step, token in enumerate(tokens):
            logits = _own_logits(model, prompt + tokens[:step])
            below = float(logits.max() - logits[token])
            assert below <= TOLERANCE * max(1.0, float(logits.abs().max())), f"step {step}: {below:.2g} below the best"


def logprobs(kind: str) -> None:
    """The log-probs of sampled tokens are those of the model's own forward."""
    model = small_model(kind)
    generation = ppo.generate(model, PROMPTS, ppo.Sampling(response_length=8), seed=3)
    for row, prompt in enumerate(PROMPTS):
        tokens = generation.tokens[row].tolist()
        for step, token in enumerate(tokens):
            own = float(_own_logits(model, prompt + tokens[:step]).log_softmax(-1)[token])
            gap = abs(own - float(generation.logprobs[row, step]))
            assert gap <= TOLERANCE * max(1.0, abs(own)), f"step {step}: {gap:.2g} nats off"


def training(kind: str) -> None:
    """Two steps move the weights, and every number of them is finite."""
    trainer = _trainer(small_model(kind))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    _two_steps(trainer)
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


def top_layer(kind: str) -> None:
    """Two steps with everything but the last block frozen."""
    _two_steps(_trainer(small_model(kind), train_top_layers=1))


def resume(kind: str) -> None:
    """A run that was saved goes on to the same bits."""
    trainer = _trainer(small_model(kind))
    trainer.update(trainer.rollout())
    with TemporaryDirectory() as folder:
        trainer.save(Path(folder) / "checkpoint")
        trainer.update(trainer.rollout())
        resumed = ppo.Trainer.resume(Path(folder) / "checkpoint", PROMPTS, _reward)
    resumed.update(resumed.rollout())
    ends = trainer.model.state_dict(), resumed.model.state_dict()
    for name, weight in ends[0].items():
        assert torch.equal(weight, ends[1][name]), f"{name} differs"


def bfloat16(kind: str) -> None:
    """Two steps with weights in bfloat16."""
    _two_steps(_trainer(small_model(kind).bfloat16()))


CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check for check in (greedy, logprobs, training, top_layer, resume, bfloat16)
}


@torch.no_grad()
def _own_logits(model: Any, ids: list[int]) -> Tensor:
    """The logits after the last of the ids, float32 [V]."""
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits: Tensor = model(input_ids=torch.tensor([ids]), **options).logits[0, -1]
    return logits.float()


def _reward(samples: list[ppo.types.Sample]) -> list[float]:
    return [float(sum(sample.ids) % 7) for sample in samples]


def _trainer(model: nn.Module, **changes: Any) -> ppo.Trainer:
    options: dict[str, Any] = {"prompts_per_step": 4, "minibatch": 2, "response_length": 6, "epochs": 2}
    return ppo.Trainer(model, PROMPTS, _reward, ppo.Config(**options | {"learning_rate": 1e-3} | changes))


def _two_steps(trainer: ppo.Trainer) -> None:
    for _ in range(2):
        metrics = trainer.update(trainer.rollout())
        broken = [name for name, value in metrics.items() if value != value]
        assert not broken, f"{broken} are nan"
