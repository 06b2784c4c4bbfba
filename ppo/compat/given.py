"""Responses that were sampled elsewhere (by another engine, on another machine, by hand), made ready for an update.

    rollout = trainer.appraise(given_responses(trainer, prompts, responses, scores))
    trainer.update(rollout)

Policy, critic and reference are asked about them as about the trainer's own. This module samples and scores nothing.
A function that samples in every step is better a ``sampler=`` of the trainer: :mod:`ppo.sampler`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..prompts import make_samples, read_prompts
from ..sampler import collate
from ..trainer import Trainer
from ..types import Responses


def given_responses(
    trainer: Trainer, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], scores: Tensor
) -> Responses:
    """Responses for :meth:`Trainer.appraise`, from B prompts and responses as token ids and scores [B].

    A response that ended by itself holds its EOS. Old log-probs are those of the policy as it is now, under the
    trainer's own temperature and filters; the responses should have been drawn from that distribution. Raises
    ValueError for lists of different lengths, for a response without a token, and with several processes.
    """
    if not len(prompts) == len(responses) == len(scores):
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} responses and {len(scores)} scores: give one of each per sample"
        )
    if trainer.processes.count > 1:
        raise ValueError(f"given_responses works in one process, not in {trainer.processes.count}: use Trainer.rollout")
    generation = collate(prompts, responses, eos_ids=trainer.policy.sampling.eos_ids or (), device=trainer.device)
    samples = make_samples(read_prompts(prompts, trainer.tokenizer), generation, trainer.tokenizer)
    version = trainer.learner.num_updates
    return trainer.collector.measure(generation, samples, scores.float(), policy_version=version)
