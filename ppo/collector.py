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

from .metrics import mean_gaps
from .policy import Policy
from .prompts import Prompt, make_samples
from .run.limits import retry_smaller
from .scoring import Scorer
from .types import Generation, Reference, Responses, Sample, Sampler


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
        """One response to each prompt of a step, with all that was measured; the whole step, on every process.

        ``prompts``: all B of the step, the same on every process. ``step``: for the messages of errors.
        ``policy_version``: how many updates the policy has had; it is handed on. Raises ValueError where the reward
        gave scores on one process and token rewards on another.
        """
        policy, processes, started = self.policy, self.policy.processes, time.perf_counter()
        own = processes.share(len(prompts))
        with processes.together(), policy.readable():
            generation = self._sample(prompts[own], range(own.start, own.stop))
            samples = make_samples(prompts[own], generation, self._tokenizer)
            sampled = time.perf_counter()
            scores, token_rewards = self._scorer.ask(samples, step=step)
            scored = time.perf_counter()
            generation = policy.with_frozen_hidden(generation)  # policy, critic and reference then skip these blocks
            old_logprobs, old_values = policy.before(generation)
            measured = time.perf_counter()
        all_measured = time.perf_counter()  # the faster processes have waited for the others
        ref_logprobs = self._ask_reference(generation, samples)
        metrics = {
            "time/rollout_s": sampled - started,
            "time/reward_s": scored - sampled,
            "time/old_policy_s": measured - scored,
            "time/waiting_s": all_measured - measured,
            "time/reference_s": time.perf_counter() - all_measured,
        }
        if len(set(processes.all_gather(token_rewards is None))) > 1:
            raise ValueError("the reward gave scores on one process and token rewards on another: always give one kind")
        if processes.count > 1:
            generation = processes.gather_generation(generation)
            samples = make_samples(prompts, generation, self._tokenizer)
        old_logprobs = processes.gather_rows(old_logprobs)
        policy.agree_on_limits()  # memory may have run out on some of the processes only
        return Responses(
            generation,
            samples,
            processes.gather_rows(scores),
            processes.gather_rows(token_rewards),
            old_logprobs,
            processes.gather_rows(old_values),
            processes.gather_rows(ref_logprobs),
            metrics | self._sampler_gap(generation, old_logprobs),
            policy_version,
        )

    def measure(
        self,
        generation: Generation,
        samples: list[Sample],
        scores: Tensor,
        token_rewards: Tensor | None = None,
        *,
        policy_version: int | None = None,
    ) -> Responses:
        """The same for responses that exist already: nothing is sampled and no reward is asked. For one process only.

        Old log-probs and values are those of the policy as it is now. They replace what the generation holds.
        """
        started = time.perf_counter()
        old = self.policy.measure(generation)
        generation = replace(generation, logprobs=old.logprobs, entropy=old.entropy, values=old.values)
        between = time.perf_counter()
        ref_logprobs = self._ask_reference(generation, samples)
        metrics = {"time/old_policy_s": between - started, "time/reference_s": time.perf_counter() - between}
        return Responses(
            generation, samples, scores, token_rewards, old.logprobs, old.values, ref_logprobs, metrics, policy_version
        )

    def _sample(self, prompts: Sequence[Prompt], request_ids: Sequence[int]) -> Generation:
        """Ask the sampler, with a new seed that is the same on every process: all of them hold the same generator."""
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return self._sampler(self.policy, prompts, seed=seed, request_ids=request_ids)

    def _sampler_gap(self, generation: Generation, old_logprobs: Tensor) -> dict[str, float]:
        """Nats per token between sampler and training forward in the worst row, if both were asked."""
        if self.policy.is_sampler_exact:
            return {}
        return {"rollout/sampler_gap": float(mean_gaps(generation.logprobs, old_logprobs, generation.mask).max())}

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
            parts = torch.split(torch.arange(len(generation)), rows)
            return torch.cat([reference.logprobs(generation.rows(p), [samples[i] for i in p.tolist()]) for p in parts])

        readable = policy.readable(self._reference_model) if self._reference_model is not None else nullcontext()
        # The reference needs the policy's precision, or KL would not be 0 where the two are the same model.
        with policy.processes.together(), readable, policy.precision():
            return retry_smaller(ask, lambda: policy.limits.halve_reference(policy.rows_at_once(generation)))
