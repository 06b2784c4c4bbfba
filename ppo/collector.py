"""Prompts in, responses out: sampled, scored, and measured by the policy, the critic and the reference.

With several processes, each one does all this for its own share of the prompts. The shares are then gathered, so that
every process returns the whole step. This module knows the order of the questions, not what becomes of the answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .policy import Policy
from .prompts import Prompt, make_samples
from .run.limits import retry_smaller
from .scoring import Scorer
from .types import Generation, Reference, Responses, Sample, Sampler


class _Stopwatch:
    """Seconds of the parts of a rollout, as metrics ``time/…_s``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """A part is over: what has passed since the one before is its time."""
        now = time.perf_counter()
        self.seconds[f"time/{part}_s"], self._last = now - self._last, now


class Collector:
    """Asks the sampler, the reward, the policy and the reference, in this order.

    reference        what KL is measured against; None where no KL is taken
    reference_model  the model of this run that the reference calls, whose weights may be split; None: it calls none
    generator        CPU; each step draws one seed for the sampler from it
    tokenizer        decodes responses for the reward; None: ``Sample.text`` is ""
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        scorer: Scorer,
        reference: Reference | None,
        *,
        reference_model: nn.Module | None = None,
        generator: torch.Generator,
        tokenizer: Any | None = None,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self._sampler = sampler
        self._scorer = scorer
        self._reference_model = reference_model
        self._generator = generator
        self._tokenizer = tokenizer

    def collect(self, prompts: Sequence[Prompt], *, step: int, policy_version: int | None = None) -> Responses:
        """Returns one response to each prompt, with all measurements. Every process returns the whole step.

        ``prompts``: all B of the step, the same on every process. ``step``: for the messages of errors.
        ``policy_version``: how many updates the policy has had; it is handed on. Raises ValueError where the reward
        gave scores on one process and token rewards on another.
        """
        policy, processes, clock = self.policy, self.policy.processes, _Stopwatch()
        own = processes.share(len(prompts))
        with processes.together(), policy.readable():
            generation = self._sample(prompts[own], range(own.start, own.stop))
            samples = make_samples(prompts[own], generation, self._tokenizer)
            clock.lap("rollout")
            scores, raw_token_rewards = self._scorer.ask(samples, step=step)
            clock.lap("reward")
            generation = policy.with_frozen_hidden(generation)  # policy, critic and reference then skip these blocks
            generation = policy.with_kept_sets(generation)  # policy and reference then keep the same tokens
            old_logprobs, old_values = policy.old_statistics(generation)
            clock.lap("old_policy")
        clock.lap("waiting")  # leaving together() is the barrier: the faster processes have waited for the others
        ref_logprobs = self._ask_reference(generation, samples)
        clock.lap("reference")
        responses = self._gathered(
            Responses(
                generation, samples, scores, raw_token_rewards, old_logprobs, old_values, ref_logprobs,
                clock.seconds, policy_version, is_compared=not policy.is_sampler_exact,
            ),
            prompts,
        )  # fmt: skip
        policy.agree_on_limits()  # memory may have run out on some of the processes only
        return responses

    def _gathered(self, own: Responses, prompts: Sequence[Prompt]) -> Responses:
        """The responses of all processes, from those of this one."""
        processes = self.policy.processes
        if len(set(processes.all_gather(own.raw_token_rewards is None))) > 1:
            raise ValueError("the reward gave scores on one process and token rewards on another: always give one kind")
        if processes.count == 1:
            return own
        generation = processes.gather_generation(own.generation)
        rows = {
            name: processes.gather_rows(getattr(own, name))
            for name in ("old_logprobs", "scores", "raw_token_rewards", "old_values", "ref_logprobs")
        }
        return replace(own, generation=generation, samples=make_samples(prompts, generation, self._tokenizer), **rows)

    def measure(
        self,
        generation: Generation,
        prompts: Sequence[Prompt],
        scores: Tensor,
        raw_token_rewards: Tensor | None = None,
        *,
        has_logprobs: bool,
        policy_version: int | None = None,
    ) -> Responses:
        """The same for responses that exist already: nothing is sampled and no reward is asked.

        Every process passes and returns the whole step; each measures its share of it. Old log-probs and values are
        those of the policy as it is now. They replace what the generation holds, but for log-probs that its sampler
        knew (``has_logprobs``): those are compared with them.
        """
        policy, processes, clock = self.policy, self.policy.processes, _Stopwatch()
        own = range(len(generation))[processes.share(len(generation))]
        part = generation.rows(own)
        samples = make_samples(prompts[own.start : own.stop], part, self._tokenizer)
        with processes.together(), policy.readable():
            part = policy.with_kept_sets(part)
            old = policy.measure(part)
            drawn = part.logprobs if has_logprobs else old.logprobs
            part = replace(part, logprobs=drawn, entropy=old.entropy, values=old.values)
            clock.lap("old_policy")
        clock.lap("waiting")
        ref_logprobs = self._ask_reference(part, samples)
        clock.lap("reference")
        rewards = None if raw_token_rewards is None else raw_token_rewards[own.start : own.stop]
        responses = self._gathered(
            Responses(
                part, samples, scores[own.start : own.stop], rewards, old.logprobs, old.values, ref_logprobs,
                clock.seconds, policy_version, is_compared=has_logprobs, is_given=True,
            ),
            prompts,
        )  # fmt: skip
        policy.agree_on_limits()
        return responses

    def _sample(self, prompts: Sequence[Prompt], request_ids: Sequence[int]) -> Generation:
        """Ask the sampler, with a new seed that is the same on every process: all of them hold the same generator."""
        seed = int(torch.randint(2**62, (), generator=self._generator, device="cpu"))
        return self._sampler(self.policy, prompts, seed=seed, request_ids=request_ids)

    def _ask_reference(self, generation: Generation, samples: list[Sample]) -> Tensor | None:
        """Log-probs of the response tokens under the reference [B, T], or None without a reference.

        When memory runs out, the reference is asked again, about fewer rows at a time.
        """
        reference, policy = self.reference, self.policy
        if reference is None:
            return None

        def ask() -> Tensor:
            rows = policy.limits.reference_rows
            if rows is None:
                return reference.logprobs(generation, samples)
            parts = torch.split(torch.arange(len(generation), device="cpu"), rows)
            return torch.cat([reference.logprobs(generation.rows(p), [samples[i] for i in p.tolist()]) for p in parts])

        readable = policy.readable(self._reference_model) if self._reference_model is not None else nullcontext()
        # The reference needs the policy's precision, or KL would not be 0 where the two are the same model.
        with policy.processes.together(), readable, policy.precision():
            return retry_smaller(ask, lambda: policy.limits.halve_reference(policy.rows_at_once(generation)))
