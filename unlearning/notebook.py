"""DeMem's training as its published notebook ran it: ``--preset paper-as-run``. For comparison, not for use.

Three things differ from ``--preset paper``, which is the method as the paper describes it on this engine:

* The response is the last 55 tokens of prompt and output together. After an early EOS it begins with the prompt's own
  last tokens, which stand behind the whole prompt once more, are scored with the output, and are trained as actions.
* The reward has no guard: empty and broken text scores best. Special tokens stand in the text that is scored.
* There are at most four batches of 32, one an "epoch", whatever the size of the data, and no rule that stops it. So the
  KL penalty, measured once a batch, is 0 in the first one and next to nothing in the others.

What was wrong in its evaluation is in :mod:`eval.paper`, with a table of all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace

import torch
from tqdm import tqdm

import ppo
from ppo.log import HEADLINE, RunLog, headline
from ppo.types import Generation, Rollout


def train_as_published(
    trainer: ppo.Trainer,
    steps: int,
    *,
    show: Mapping[str, str] = HEADLINE,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Train up to step ``steps``, with a checkpoint after each. ValueError for several processes.

    ``show``: labels on the progress bar, and the metrics that they name. ``after_step`` is told how many steps are
    done, once the last one is logged and saved.
    """
    if trainer.processes.count > 1:
        raise ValueError("--preset paper-as-run trains in one process: start it without torchrun")
    log = RunLog(trainer.out, first_step=trainer.step, use_tensorboard=None)
    bar = tqdm(range(trainer.step, steps), desc="PPO", unit="step")
    with closing(log):
        for step in bar:
            rollout = published_rollout(trainer)
            metrics = {**rollout.metrics, **trainer.update(rollout)}
            log.metrics(step, metrics)
            log.samples(step, rollout)
            bar.set_postfix(headline(show, metrics))
            trainer.save_numbered()
            if after_step is not None:
                after_step(trainer.step)


def published_rollout(trainer: ppo.Trainer) -> Rollout:
    """The trainer's next rollout, as the notebook would have taken it."""
    return with_sliced_responses(trainer, trainer.rollout())


@torch.no_grad()
def with_sliced_responses(trainer: ppo.Trainer, rollout: Rollout) -> Rollout:
    """The same rollout with the notebook's responses; unchanged where every response has its full length.

    Example: length 4, prompt 1 2 3 4 5, output 8 9: the response is 4 5 8 9, after 1 2 3 4 5.
    """
    length = trainer.config.response_length
    if bool((rollout.generation.lengths == length).all()):
        return rollout
    ids = [[*s.prompt_ids, *s.ids][-length:] for s in rollout.samples]
    samples = [
        replace(s, ids=tokens, text=str(trainer.tokenizer.decode(tokens)) if trainer.tokenizer else "")
        for s, tokens in zip(rollout.samples, ids, strict=True)
    ]
    generation = sliced(rollout.generation, ids)
    scores, token_rewards = trainer.scorer.ask(samples, step=trainer.step)
    version = trainer.learner.num_updates
    measured = trainer.collector.measure(generation, samples, scores, token_rewards, policy_version=version)
    times = {name: x for name, x in rollout.metrics.items() if name.startswith("time/")}
    return trainer.appraise(replace(measured, metrics=times))


def sliced(generation: Generation, ids: list[list[int]]) -> Generation:
    """The generation with other response tokens after the same prompts; no statistic is known of them."""
    width, device = max(map(len, ids)), generation.tokens.device
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
    mask = torch.arange(width, device=device) < torch.tensor([[len(row)] for row in ids], device=device)
    unknown = torch.zeros(mask.shape, device=device)
    return replace(
        generation, tokens=tokens, mask=mask, logprobs=unknown, entropy=unknown, values=unknown, frozen_hidden=None,
        is_ended=torch.zeros_like(generation.is_ended),
    )  # fmt: skip
