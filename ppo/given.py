"""Responses that were sampled elsewhere, made ready for an update: by another engine, on another machine, by hand.

    rollout = trainer.appraise(given_responses(trainer, prompts, responses, scores))
    trainer.update(rollout)

Policy, critic and reference are asked about them as about the trainer's own. This module samples and scores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .prompts import make_samples, read_prompts
from .sampler import collate
from .trainer import Trainer
from .types import Responses


def given_responses(
    trainer: Trainer, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], scores: Tensor
) -> Responses:
    """B prompts and responses as token ids (EOS included where there was one) and their scores [B].

    Old log-probs are those of the policy as it is now, under the trainer's own temperature and filters: the responses
    should have been drawn from that distribution. In one process. Raises ValueError for lists of different lengths and
    for a response without a token.
    """
    if not len(prompts) == len(responses) == len(scores):
        raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses and {len(scores)} scores: give as many")
    if trainer.processes.count > 1:
        raise ValueError(f"given responses are for one process, not {trainer.processes.count}: use Trainer.rollout")
    generation = collate(prompts, responses, eos_ids=trainer.policy.sampling.eos_ids or (), device=trainer.device)
    samples = make_samples(read_prompts(prompts, trainer.tokenizer), generation, trainer.tokenizer)
    version = trainer.learner.num_updates
    return trainer.collector.measure(generation, samples, scores.float(), policy_version=version)
