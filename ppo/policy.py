"""The policy and the critic as a run calls them: with gradients in the update, without gradients everywhere else.

The policy owns the actor-critic, the distribution that responses are drawn from, the precision that the model is called
in, and the limits on what passes it at once. This module knows nothing about rewards, losses or optimisers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .actor_critic import ActorCritic, checkpointed_layers
from .buffer import microbatches, trim
from .config import Config, Sampling
from .distributed.processes import Processes
from .distributed.sharding import readable
from .io.named import wrong_answer
from .lm.backbone import end_ids, is_split
from .lm.frozen_blocks import find_frozen_blocks
from .lm.precision import autocast, statistics_dtype
from .metrics import mean_gaps
from .run.limits import Limits, retry_smaller
from .types import Evaluation, Generation, Rollout


class Policy:
    """A causal LM that is trained, with its value function.

    ``sampling``: the distribution that responses are drawn from, with its end tokens. ``limits``: how much passes the
    model at once. An out-of-memory error lowers them in place; all objects of a run share this one record.
    ``has_entropy_gradient``: a loss reads the entropy, also where ``config.entropy_coef`` is 0.
    """

    def __init__(
        self,
        actor: ActorCritic,
        sampling: Sampling,
        config: Config,
        processes: Processes,
        *,
        has_entropy_gradient: bool = False,
    ) -> None:
        self.actor = actor
        self.sampling = sampling
        self.limits = Limits.of(config)
        self.processes = processes
        self._config = config
        self._has_entropy_gradient = has_entropy_gradient or config.entropy_coef != 0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        config: Config,
        processes: Processes,
        *,
        critic: nn.Module | None = None,
        has_own_loss: bool = False,
    ) -> Policy:
        """The model with its value function: ``critic``, or what the config asks for.

        ``has_own_loss``: a policy loss of somebody else's, which may read the entropy. Every process gets the weights
        of process 0.
        """
        kind = config.value_head if config.has_critic and critic is None else "none"
        actor = ActorCritic(
            model,
            value_head=None if kind == "none" else kind,
            critic=critic,
            is_head_detached=config.detach_value_head,
            frozen_blocks=find_frozen_blocks(model),
            seed=config.seed,
        )
        processes.copy_first(actor)
        sampling = replace(config.sampling(), eos_ids=end_ids(model))
        return cls(actor, sampling, config, processes, has_entropy_gradient=has_own_loss)

    def drawing(self, sampling: Sampling) -> Policy:
        """The same policy with another distribution of its responses. It shares model and limits with this one."""
        other = copy.copy(self)
        other.sampling = sampling
        return other

    @property
    def model(self) -> nn.Module:
        """The causal LM itself."""
        return self.actor.policy

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights."""
        return next(self.model.parameters()).dtype

    # ------------------------------------------------------------------ asking

    def evaluate(self, generation: Generation) -> Evaluation:
        """Log-probs, entropy and values of given responses, in the precision of training; differentiable."""
        with self.precision():
            return self.actor.run(
                lambda: self.actor.evaluate(
                    generation,
                    self.sampling,
                    chunk_tokens=self._config.logprob_chunk_tokens,
                    has_entropy_gradient=self._has_entropy_gradient,
                )
            )

    def measure(self, generation: Generation) -> Evaluation:
        """:meth:`evaluate` without gradients, on as many rows at a time as fit into memory.

        Raises ValueError for values of an own critic that are NaN or infinite.
        """

        def ask(part: Generation) -> tuple[Tensor, ...]:
            found = self.evaluate(part)
            return found.logprobs, found.entropy, found.values

        found = Evaluation(*self._ask_in_fitting_parts(generation, ask))
        self._check_values(found.values)
        return found

    def old_statistics(self, generation: Generation) -> tuple[Tensor, Tensor]:
        """Old log-probs and values, each [B, T]: the sampler's own where those are exact, else measured.

        Values are 0 without a critic. A separate critic is asked alone where the sampler knows the log-probs.
        """
        if not self.is_sampler_exact:
            found = self.measure(generation)
            return found.logprobs, found.values
        if not self._config.has_critic:
            return generation.logprobs, torch.zeros_like(generation.logprobs)
        if generation.values is not None:
            return generation.logprobs, generation.values
        if self.actor.critic is None:  # a sampler that did not ask the value head
            return generation.logprobs, self.measure(generation).values
        (values,) = self._ask_in_fitting_parts(generation, lambda part: (self._critic_values(part),))
        self._check_values(values)
        return generation.logprobs, values

    @property
    def is_sampler_exact(self) -> bool:
        """Whether the sampler's log-probs serve as the old ones.

        They do with weights in float32, without autocast, and with ``config.old_logprobs="rollout"``. In any other
        precision the sampler and the training forward round differently.
        """
        config = self._config
        return config.old_logprobs == "rollout" and config.autocast == "off" and self.dtype == torch.float32

    def gaps(self, rollout: Rollout) -> Tensor:
        """Mean size of log(new / old) of each row, nats per token, float32 [B].

        Raises an out-of-memory error as it comes: with split weights, the other processes wait in the same forward, so
        this one cannot begin again.
        """

        def ask(part: Generation) -> tuple[Tensor, ...]:
            return (self.evaluate(part).logprobs,)

        (logprobs,) = self._ask_in_parts(rollout.generation, ask)
        return mean_gaps(logprobs, rollout.old_logprobs, rollout.generation.action_mask).float()

    def with_frozen_hidden(self, generation: Generation) -> Generation:
        """The generation with the output of the frozen blocks, so that no epoch and no reference runs them again.

        With several processes the output is too large to be gathered, so there the epochs run the blocks again.
        The generation comes back unchanged if there are no frozen blocks, or if weights are split at the moment:
        recording stops a forward half-way, and the other processes would be left inside it.
        """
        frozen = self.actor.frozen_blocks
        if frozen is None or is_split(self.model):
            return generation

        def record() -> Tensor:
            budget, rows = self._config.reference_batch_tokens, self.limits.reference_rows
            budget = budget if rows is None else min(budget, rows * _longest(generation))
            with self.precision():
                return frozen.record(self.actor.backbone, generation, batch_tokens=budget)

        hidden = retry_smaller(record, lambda: self.limits.halve_reference(self.rows_at_once(generation)))
        return replace(generation, frozen_hidden=hidden)

    def with_kept_sets(self, generation: Generation) -> Generation:
        """The generation with the tokens that this policy's filters leave, for ``config.kept_sets="replay"``.

        The update and the reference then keep these tokens too (DeepSeek-V3.2, "keep sampling mask"). Sets that the
        sampler gave stay. Raises ValueError for such sets where nothing would read them.
        """
        if self._config.kept_sets == "recompute" and generation.kept_sets is not None:
            raise ValueError(
                "the sampler gave kept_sets, which Config(kept_sets='recompute') never reads: leave them out"
            )
        if self._config.kept_sets == "recompute" or generation.kept_sets is not None:
            return generation

        def ask(part: Generation) -> tuple[Tensor, ...]:
            with self.precision():
                return (self.actor.run(partial(self.actor.kept_sets, part, self.sampling, chunk_tokens=chunk)),)

        chunk = self._config.logprob_chunk_tokens
        (sets,) = self._ask_in_fitting_parts(generation, ask)
        return replace(generation, kept_sets=sets)

    # ------------------------------------------------------------------ how it is asked

    def readable(self, model: nn.Module | None = None) -> AbstractContextManager[None]:
        """A context in which every process may call a model whose weights may be split; not for training.

        ``model``: another model than the actor, such as the frozen copy.
        """
        asked = self.actor if model is None else model
        return readable(asked, self.processes, is_gathered=self._config.gather_for_rollouts)

    def precision(self) -> AbstractContextManager[Any]:
        """The context that the model is called in: autocast, or nothing."""
        return autocast(self._config.autocast, self.device)

    def training(self) -> AbstractContextManager[Any]:
        """The context of an update. With gradient checkpointing, blocks are computed again in the backward pass."""
        return checkpointed_layers(self.actor) if self._config.gradient_checkpointing else nullcontext()

    def rows_at_once(self, generation: Generation) -> int:
        """How many rows of a generation pass the reference or the frozen blocks at once."""
        fitting = max(self._config.reference_batch_tokens // _longest(generation), 1)
        return min(self.limits.reference_rows or fitting, fitting, len(generation))

    def agree_on_limits(self) -> None:
        """Take the smallest limits of all processes, so that all of them make equally many forwards."""
        self.limits.take(Limits.smallest(self.processes.all_gather(self.limits)))

    def _check_values(self, values: Tensor) -> None:
        """Raise ValueError that names a critic of somebody else's whose values are NaN or infinite."""
        if self.actor.has_own_critic and not bool(values.isfinite().all()):
            row = int((~values.isfinite().all(dim=1)).nonzero()[0])
            raise wrong_answer(
                "value", self.actor.critic, f"returned values that are NaN or infinite, such as in row {row}"
            )

    def _critic_values(self, part: Generation) -> Tensor:
        with self.precision():
            return self.actor.run(lambda: self.actor.critic_values(part))

    def _ask_in_fitting_parts(
        self, generation: Generation, ask: Callable[[Generation], tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """:meth:`_ask_in_parts`; when memory runs out, it starts again with fewer rows at a time."""
        return retry_smaller(
            lambda: self._ask_in_parts(generation, ask), lambda: self.limits.halve_microbatch(len(generation))
        )

    @torch.no_grad()
    def _ask_in_parts(self, generation: Generation, ask: Callable[[Generation], tuple[Tensor, ...]]) -> list[Tensor]:
        """Call ``ask`` on a few rows at a time, without gradients, and join its answers [b, t, …] to [B, T, …]."""
        limits, like = self.limits, generation.logprobs.to(statistics_dtype(self.dtype))
        split = microbatches(generation.layout.attention_mask, size=limits.microbatch, tokens=limits.microbatch_tokens)
        answers = [ask(trim(generation.rows(indices))) for indices in split]
        return [_joined(parts, split, like) for parts in zip(*answers, strict=True)]


def _joined(parts: Sequence[Tensor], split: Sequence[Tensor], like: Tensor) -> Tensor:
    """The rows of all parts in their places, [B, T, …], floats as in ``like``; ``split``: row indices of each part."""
    dtype = like.dtype if parts[0].is_floating_point() else parts[0].dtype
    joined = like.new_zeros(*like.shape, *parts[0].shape[2:], dtype=dtype)
    for part, indices in zip(parts, split, strict=True):
        joined[indices, : part.shape[1]] = part
    return joined


def _longest(generation: Generation) -> int:
    return int(generation.layout.attention_mask.sum(dim=1).max())
