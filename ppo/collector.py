"""The first half of a rollout: responses to a step's prompts, and all that is asked about them before advantages.

Each of several processes samples and scores its own share of the prompts, and asks the reference about it; what comes
back is the whole step, on all of them. This module knows the order of the questions, nothing of what becomes of the
answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .actor_critic import Evaluation
from .buffer import microbatches, trim
from .generation import generate
from .lm.backbone import is_split
from .lm.precision import statistics_dtype
from .metrics import mean_gaps
from .prompts import Prompt, make_samples
from .run.limits import Limits, retry_smaller
from .types import Generation, Sample

if TYPE_CHECKING:
    from .trainer import Trainer


@dataclass(frozen=True)
class Responses:
    """The responses to a step's prompts, prompt-major, and what was said about them.

    ``scores`` [B] and ``token_rewards`` [B, T] (None for a reward of one score a sample) as the reward gave them;
    ``old_logprobs``, ``old_values`` and ``ref_logprobs`` [B, T]; ``metrics``: how long each part took on this process,
    ``time/…_s``, and ``rollout/sampler_gap`` where sampler and training forward were both asked about the policy's
    log-probs: nats per token between them, in the worst row.
    """

    generation: Generation
    samples: list[Sample]
    scores: Tensor
    token_rewards: Tensor | None
    old_logprobs: Tensor
    old_values: Tensor
    ref_logprobs: Tensor | None
    metrics: dict[str, float]


def respond(trainer: Trainer, prompts: Sequence[Prompt]) -> Responses:
    """Sample, score, and ask policy, critic and reference, in this order."""
    processes, started = trainer.processes, time.perf_counter()
    own = processes.share(len(prompts))
    with processes.together(), trainer.reading(trainer.actor):
        generation = _sample(trainer, prompts[own], range(own.start, own.stop))
        samples = make_samples(prompts[own], generation, trainer.tokenizer)
        sampled = time.perf_counter()
        scores, token_rewards = trainer.scorer.ask(samples, step=trainer.step)
        scored = time.perf_counter()
        generation = _with_frozen_hidden(trainer, generation)
        old_logprobs, old_values = _old_statistics(trainer, generation)
        judged = time.perf_counter()
    met = time.perf_counter()  # the faster ones of several processes have waited
    ref_logprobs = ask_reference(trainer, generation, samples)
    metrics = {
        "time/rollout_s": sampled - started,
        "time/reward_s": scored - sampled,
        "time/old_policy_s": judged - scored,
        "time/waiting_s": met - judged,
        "time/reference_s": time.perf_counter() - met,
    }
    if len(set(processes.all_gather(token_rewards is None))) > 1:
        raise ValueError("the reward gave scores on one process and token rewards on another: always give one kind")
    if processes.count > 1:
        generation = processes.gather_generation(generation)
        samples = make_samples(prompts, generation, trainer.tokenizer)
    old_logprobs = processes.gather_rows(old_logprobs)
    # From here on all make equally many forwards.
    trainer.limits = Limits.smallest(processes.all_gather(trainer.limits))
    return Responses(
        generation,
        samples,
        processes.gather_rows(scores),
        processes.gather_rows(token_rewards),
        old_logprobs,
        processes.gather_rows(old_values),
        processes.gather_rows(ref_logprobs),
        metrics | _sampler_gap(trainer, generation, old_logprobs),
    )


def _sampler_gap(trainer: Trainer, generation: Generation, old_logprobs: Tensor) -> dict[str, float]:
    if is_sampler_exact(trainer):
        return {}
    return {"rollout/sampler_gap": float(mean_gaps(generation.logprobs, old_logprobs, generation.mask).max())}


def _sample(trainer: Trainer, prompts: Sequence[Prompt], request_ids: Sequence[int]) -> Generation:
    seed = int(torch.randint(2**62, (), generator=trainer.generator))

    def sample() -> Generation:
        return generate(
            trainer.model,
            [prompt.ids for prompt in prompts],
            trainer.sampling,
            seed=seed,
            request_ids=request_ids,
            slots=trainer.limits.rollout_slots,
            value_fn=trainer.actor.value_fn,
            compiled=trainer.config.compiled_rollout,
        )

    return retry_smaller(sample, lambda: trainer.limits.halve_slots(len(prompts)))


def _with_frozen_hidden(trainer: Trainer, generation: Generation) -> Generation:
    """With what the frozen blocks say, if there are any: no epoch and no reference needs to ask them again.

    Not where weights are split now: what is recorded breaks off a forward in the middle, and other processes are in it.
    """
    blocks = trainer.frozen_blocks
    if blocks is None or is_split(trainer.model):
        return generation

    def record() -> Tensor:
        budget, rows = trainer.config.reference_batch_tokens, trainer.limits.reference_rows
        budget = budget if rows is None else min(budget, rows * _longest(generation))
        with trainer.precision():
            return blocks.record(trainer.actor.backbone, generation, batch_tokens=budget)

    hidden = retry_smaller(record, lambda: trainer.limits.halve_reference(_reference_rows(trainer, generation)))
    return replace(generation, frozen_hidden=hidden)


def is_sampler_exact(trainer: Trainer) -> bool:
    """Whether the sampler's log-probs serve as those of the old policy: in its own precision, unless told otherwise."""
    config, dtype = trainer.config, next(trainer.model.parameters()).dtype
    return config.old_logprobs == "rollout" and config.autocast == "off" and dtype == torch.float32


def _old_statistics(trainer: Trainer, generation: Generation) -> tuple[Tensor, Tensor]:
    """Log-probs and values of the policy before the update, from the sampler or from the training forward."""
    if not is_sampler_exact(trainer):
        whole = ask_policy(trainer, generation)
        return whole.logprobs, whole.values
    if generation.values is not None:
        return generation.logprobs, generation.values
    if not trainer.config.has_critic:
        return generation.logprobs, torch.zeros_like(generation.logprobs)
    (values,) = _in_microbatches(trainer, generation, lambda part: (_critic_values(trainer, part),))
    return generation.logprobs, values


def _critic_values(trainer: Trainer, part: Generation) -> Tensor:
    with trainer.precision():
        return trainer.actor.run(lambda: trainer.actor.critic_values(part))


def ask_policy(trainer: Trainer, generation: Generation) -> Evaluation:
    """The training forward over a whole generation, microbatch by microbatch; without gradients."""

    def ask(part: Generation) -> tuple[Tensor, ...]:
        evaluation = trainer.evaluate(part)
        return evaluation.logprobs, evaluation.entropy, evaluation.values

    return Evaluation(*_in_microbatches(trainer, generation, ask))


def _in_microbatches(
    trainer: Trainer, generation: Generation, ask: Callable[[Generation], tuple[Tensor, ...]]
) -> list[Tensor]:
    """What ``ask`` says of a few rows at a time, each answer [b, t], put together to [B, T]; without gradients."""
    limits, dtype = trainer.limits, statistics_dtype(next(trainer.model.parameters()).dtype)

    @torch.no_grad()
    def whole() -> list[Tensor]:
        split = microbatches(generation.attention_mask, size=limits.microbatch, tokens=limits.microbatch_tokens)
        answers = [ask(trim(generation.rows(indices))) for indices in split]
        return [_joined(parts, split, generation.logprobs.to(dtype)) for parts in zip(*answers, strict=True)]

    return retry_smaller(whole, lambda: limits.halve_microbatch(len(generation)))


def _joined(parts: Sequence[Tensor], split: Sequence[Tensor], like: Tensor) -> Tensor:
    whole = torch.zeros_like(like)
    for part, indices in zip(parts, split, strict=True):
        whole[indices, : part.shape[1]] = part
    return whole


def ask_reference(trainer: Trainer, generation: Generation, samples: list[Sample]) -> Tensor | None:
    """Log-probs of the response tokens under the trainer's reference [B, T], or None where it has none.

    Where memory runs out, it is asked again, about fewer rows at a time.
    """
    reference = trainer.reference
    if reference is None:
        return None
    asked = trainer.actor if trainer.frozen is trainer.model else trainer.frozen

    def ask() -> Tensor:
        if trainer.limits.reference_rows is None:
            return reference.logprobs(generation, samples)
        parts = torch.split(torch.arange(len(generation)), trainer.limits.reference_rows)
        return torch.cat([reference.logprobs(generation.rows(p), [samples[i] for i in p.tolist()]) for p in parts])

    # In the policy's precision, or KL(reference, reference) would not be 0.
    with trainer.processes.together(), trainer.reading(asked), trainer.precision():
        return retry_smaller(ask, lambda: trainer.limits.halve_reference(_reference_rows(trainer, generation)))


def _reference_rows(trainer: Trainer, generation: Generation) -> int:
    """How many of the rows pass the reference at once."""
    fitting = max(trainer.config.reference_batch_tokens // _longest(generation), 1)
    return min(trainer.limits.reference_rows or fitting, fitting, len(generation))


def _longest(generation: Generation) -> int:
    return int(generation.attention_mask.sum(dim=1).max())
