"""Takes up what a failed check left behind: the same rows through the same weights, row by row.

This module knows dumps and trainers; what is wrong with a number is :mod:`ppo.checks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .checkpoint import run_state as persistence
from .checks.checks import gap_limit, rollout_problems, row_gaps, sampler_gaps
from .checks.dump import on_device, read_dump
from .learner import accumulate_gradients
from .lm.backbone import context_length, vocabulary_size
from .trainer import Trainer
from .types import Rollout


@dataclass(frozen=True)
class Replay:
    """A failed check, looked at again.

    ``check``, ``message`` as the run said it; ``problems``: what is found wrong with the rows now, each with the rows;
    ``row_gaps``: nats per token between the policy's and the old log-probs, one a row; ``statistics``: of the rows as
    one minibatch, ``update/grad_norm`` (before clipping) among them; ``rollout`` and ``trainer`` to look further.
    """

    check: str
    message: str
    problems: dict[str, list[int]]
    row_gaps: list[float]
    statistics: dict[str, float]
    rollout: Rollout
    trainer: Trainer


def replay(path: str | Path, *, model: nn.Module | None = None, device: str | None = None) -> Replay:
    """Run the rows of a dump through the weights that were saved with them; nothing is trained or written.

    ``path``: a folder under ``<out>/dumps``. ``model``: as for :meth:`Trainer.resume`, of an adapter only. Raises
    ValueError for a damaged dump.
    """
    folder = Path(path)
    found, rollout, retain = read_dump(folder)
    trainer = _trainer(folder / "trainer", model, device)
    _check_ids(folder, rollout, retain, trainer)
    rollout = on_device(rollout, trainer.device)
    retain = None if retain is None else (retain[0].to(trainer.device), retain[1].to(trainer.device))
    problems = {name: is_bad.nonzero().squeeze(1).tolist() for name, is_bad in rollout_problems(rollout).items()}
    gaps = row_gaps(trainer, rollout).tolist()
    if found["check"] != "not_finite":  # that one may come after updates, and then the policy has moved
        apart = f"log-probs are more than {gap_limit(trainer):g} nats per token apart"
        problems[apart] = [row for row, gap in enumerate(gaps) if not gap <= gap_limit(trainer)]
    if found["check"] == "sampler":
        apart = (
            f"the sampler's log-probs are more than {gap_limit(trainer):g} nats per token from the training forward's"
        )
        problems[apart] = (sampler_gaps(rollout) > gap_limit(trainer)).nonzero().squeeze(1).tolist()
    statistics = accumulate_gradients(trainer, rollout, retain)
    norms = [p.grad.norm() for p in trainer.actor.trained_parameters().values() if p.grad is not None]
    statistics["update/grad_norm"] = float(torch.stack(norms).norm()) if norms else math.nan
    trainer.optimizer.zero_grad()
    kept = {name: which for name, which in problems.items() if which}
    return Replay(found["check"], found["message"], kept, gaps, statistics, rollout, trainer)


def _check_ids(
    folder: Path, rollout: Rollout, retain: tuple[torch.Tensor, torch.Tensor] | None, trainer: Trainer
) -> None:
    """Raise ValueError for rows that the model of the dump cannot have had."""
    vocab, context = vocabulary_size(trainer.model), context_length(trainer.model)
    for ids in (rollout.generation.input_ids, *([] if retain is None else [retain[0]])):
        if int(ids.min()) < 0 or int(ids.max()) >= vocab:
            raise ValueError(f"{folder} is damaged: it holds token ids outside the model's vocabulary of {vocab}")
        if context is not None and ids.shape[1] > context:
            raise ValueError(f"{folder} is damaged: its rows are longer than the model's context of {context}")
    if (retain is not None) != (trainer.retain_loss is not None):
        raise ValueError(f"{folder} is damaged: text to keep and the run's retain_coef do not go together")


def _trainer(folder: Path, model: nn.Module | None, device: str | None) -> Trainer:
    """The trainer of a dump without its prompts, reward, reference and text to keep: what they said is in the rows."""
    snapshot = persistence.load(folder, model, None, device)
    config = snapshot.config.replace(kl_coef=0.0)  # no reference is asked again; the coefficient is restored
    prompts, keep = [[0]] * snapshot.state["num_prompts"], [[0, 0]] if config.retain_coef > 0 else None
    trainer = Trainer(snapshot.model, prompts, _no_reward, config, tokenizer=snapshot.tokenizer, retain=keep)
    persistence.restore(trainer, snapshot)
    return trainer


def _no_reward(samples: object) -> list[float]:
    raise ValueError("a trainer from a dump has no reward function: it only looks at rows")
